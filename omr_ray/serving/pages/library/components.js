// What the pages use of Web Awesome, and no more.
import { registerIconLibrary } from "@awesome.me/webawesome/dist/components/icon/library.js";
import "@awesome.me/webawesome/dist/components/button/button.js";
import "@awesome.me/webawesome/dist/components/callout/callout.js";
import "@awesome.me/webawesome/dist/components/comparison/comparison.js";
import "@awesome.me/webawesome/dist/components/dialog/dialog.js";
import "@awesome.me/webawesome/dist/components/drawer/drawer.js";
import "@awesome.me/webawesome/dist/components/icon/icon.js";
import "@awesome.me/webawesome/dist/components/input/input.js";
import "@awesome.me/webawesome/dist/components/option/option.js";
import "@awesome.me/webawesome/dist/components/progress-bar/progress-bar.js";
import "@awesome.me/webawesome/dist/components/radio/radio.js";
import "@awesome.me/webawesome/dist/components/radio-group/radio-group.js";
import "@awesome.me/webawesome/dist/components/select/select.js";
import "@awesome.me/webawesome/dist/components/slider/slider.js";
import "@awesome.me/webawesome/dist/components/spinner/spinner.js";
import "@awesome.me/webawesome/dist/components/textarea/textarea.js";

// All icons come from one file of ours: the library would fetch them from elsewhere, which the pages' policy forbids.
const sprite = {
  resolver: (name) => new URL(`./icons.svg#${name}`, import.meta.url).href,
  mutator: (svg) => svg.setAttribute("viewBox", "0 0 24 24"), // else it would be 300 px wide, and take the clicks there
  spriteSheet: true,
};
registerIconLibrary("default", sprite);
registerIconLibrary("system", sprite);
