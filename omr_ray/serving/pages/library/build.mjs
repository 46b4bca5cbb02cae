// Writes ../static/library: one JS file, one CSS file, one file of icons, and their licences.
import { build } from "esbuild";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const out = "../static/library";
// Named as the pages name them; the second half are the names that Web Awesome asks for inside its components.
const ICONS = {
  "arrow-up": "arrow-up", "circle-alert": "circle-alert", columns: "columns-2", contrast: "contrast", download: "download", equal: "equal",
  help: "circle-help", history: "history", image: "image", key: "key-round", menu: "menu", message: "message-square", moon: "moon",
  next: "arrow-right", open: "folder-open", ban: "ban", branch: "git-branch", retry: "rotate-cw", save: "save", settings: "sliders-horizontal",
  square: "square", sun: "sun", trash: "trash-2", undo: "undo-2", pen: "square-pen", judge: "scale",
  check: "check", "chevron-down": "chevron-down", "chevron-left": "chevron-left", "chevron-right": "chevron-right", circle: "circle",
  "circle-xmark": "circle-x", "grip-vertical": "grip-vertical", minus: "minus", xmark: "x", eye: "eye", "eye-slash": "eye-off",
};

mkdirSync(out, { recursive: true });
const alias = { "lit/directives/style-map.js": "./style_map.js" };
const shared = { bundle: true, minify: true, legalComments: "none", logLevel: "info" };
await build({ ...shared, entryPoints: ["components.js"], outfile: `${out}/webawesome.js`, format: "esm", alias, target: "es2022" });
await build({ ...shared, entryPoints: ["components.css"], outfile: `${out}/webawesome.css` });

const symbols = Object.entries(ICONS).map(([name, file]) => {
  const svg = readFileSync(`node_modules/lucide-static/icons/${file}.svg`, "utf8");
  const drawing = svg.slice(svg.indexOf(">", svg.indexOf("<svg")) + 1, svg.lastIndexOf("</svg>")).replace(/\s+/g, " ").trim();
  const pen = 'fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"';
  return `<symbol id="${name}" viewBox="0 0 24 24" ${pen}>${drawing}</symbol>`;
});
writeFileSync(`${out}/icons.svg`, `<svg xmlns="http://www.w3.org/2000/svg">\n${symbols.join("\n")}\n</svg>\n`);

const packages = {
  "Web Awesome (webawesome.js, webawesome.css)": "@awesome.me/webawesome/LICENSE.md",
  "Lit (in webawesome.js)": "lit/LICENSE",
  "Floating UI (in webawesome.js)": "@floating-ui/dom/LICENSE",
  "Lucide (icons.svg)": "lucide-static/LICENSE",
};
const licences = Object.entries(packages).map(([name, file]) => `## ${name}\n\n${readFileSync(`node_modules/${file}`, "utf8").trim()}\n`);
writeFileSync(`${out}/LICENSES.md`, licences.join("\n"));
