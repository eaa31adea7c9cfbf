"use strict";
// Copies the command that stands before a button; without this script the buttons stay hidden.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    const said = document.getElementById("said");
    button.textContent = "Copied";
    said.textContent = "Copied to the clipboard";
    setTimeout(() => { button.textContent = "Copy"; said.textContent = ""; }, 2000);
  });
}
