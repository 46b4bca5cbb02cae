// Elements from code. Texts become text nodes, whatever they say.

/** h("li", { class: "round", onclick: f }, "text", child): null and false are left out. */
export function h(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const $ = (id) => document.getElementById(id);

export const icon = (name, slot = null) => h("wa-icon", { name, slot, "aria-hidden": "true" });

/** New children; who had the focus among the old ones has it among the new ones (`data-key`). */
export function replace(container, ...children) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  container.replaceChildren(...children.flat().filter(Boolean));
  if (key !== undefined) container.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

export function shortened(text, length) {
  return text.length <= length ? text : `${text.slice(0, length - 1).trimEnd()}…`;
}

/** A button that cannot be pressed twice while what it began goes on. */
export function once(button, work) {
  button.addEventListener("click", async () => {
    if (button.loading) return;
    button.loading = true;
    try {
      await work();
    } finally {
      button.loading = false;
    }
  });
}
