() => {
	// Escape stops an answer, wherever the focus is.
	document.addEventListener("keydown", (event) => {
		if (event.key === "Escape") document.querySelector("#stop:not([disabled])")?.click();
	});
}
