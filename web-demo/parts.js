// What the parts of the page have in common: elements, numbers, times, and commands to copy.

export const number = (value) => value.toLocaleString("en");
export const find = (selector, within = document) => within.querySelector(selector);

/** Return a new element; `parts` are its children or texts. */
export function element(name, className = "", ...parts) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...parts);
  return made;
}

export function duration(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Fill a folded command when it is opened, and copy it as it is then. */
export function offerCommand(details, command) {
  const code = find("code", details);
  const copy = find(".copy", details);
  details.ontoggle = () => (code.textContent = command());
  copy.onclick = async () => {
    code.textContent = command();
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard without https: one key press is left to the user
      copy.textContent = "Selected";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  };
}

/** Quote for a shell. */
export function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
