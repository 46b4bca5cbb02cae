// In the place of Lit's styleMap. That one first writes a style attribute, which the pages' policy refuses; this sets properties.
import { noChange } from "lit";
import { Directive, directive } from "lit/directive.js";

class StyleMap extends Directive {
  #before = new Set();

  render() {
    return noChange;
  }

  update({ element }, [properties]) {
    for (const name of this.#before.difference(new Set(Object.keys(properties)))) write(element.style, name, null);
    for (const [name, value] of Object.entries(properties)) write(element.style, name, value);
    this.#before = new Set(Object.keys(properties));
    return noChange;
  }
}

function write(style, name, value) {
  if (name.includes("-")) style.setProperty(name, value ?? "");
  else style[name] = value ?? "";
}

export const styleMap = directive(StyleMap);
