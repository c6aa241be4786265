// The copy buttons: each copies the code before it; where the browser gives no clipboard, it selects the code instead.
document.addEventListener("click", async ({ target }) => {
    if (target.tagName !== "BUTTON") return;
    const code = target.previousElementSibling;
    try {
        await navigator.clipboard.writeText(code.textContent);
        target.textContent = "copied";
    } catch {
        getSelection().selectAllChildren(code);
        target.textContent = document.execCommand("copy") ? "copied" : "selected";
    }
    setTimeout(() => { target.textContent = "copy"; }, 2000);
});
