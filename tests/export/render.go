// Executes Go templates: reads [{Template, System, Messages}] and writes the texts, in JSON.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type conversation struct {
	Template string
	System   string
	Messages []*message
}

func main() {
	var asked []conversation
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	rendered := []string{}
	for _, c := range asked {
		var text strings.Builder
		values := map[string]any{"System": c.System, "Messages": c.Messages}
		if err := template.Must(template.New("").Parse(c.Template)).Execute(&text, values); err != nil {
			panic(err)
		}
		rendered = append(rendered, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(rendered); err != nil {
		panic(err)
	}
}
