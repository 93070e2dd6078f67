"""From a merged model to GGUF and Ollama."""
