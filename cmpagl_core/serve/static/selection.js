// What is selected, and where it can go.

import { saveExport, Trouble } from "./api.js";
import { byId, element, number, toast, withProgress } from "./elements.js";

const MOST = 1000;
const MOST_CROPS = 200;

export function makeSelection(setup, grid) {
  const formats = [["paths", "Paths"], ["csv", "CSV"], ["geojson", "GeoJSON"], ...(setup.geopackage ? [["gpkg", "GeoPackage"]] : []), ["zip", "Crops as ZIP"]];
  const choice = element("select", { "aria-label": "Format of the export" }, ...formats.map(([value, name]) => element("option", { value }, name)));
  const save = element("button.quiet", { type: "button", onclick: () => run() }, "Export");
  const words = element("span.selected-count");
  const all = element("button.plain-text", { type: "button", onclick: () => grid.selectLoaded() }, "Select loaded");
  const none = element("button.plain-text", { type: "button", onclick: () => grid.clearSelection() }, "Clear");
  byId("selection").replaceChildren(words, all, none, choice, save);

  const chosen = () => (grid.selected.size ? [...grid.selected.values()].sort((a, b) => a.rank - b.rank) : grid.loaded);
  const run = async () => {
    const most = choice.value === "zip" ? MOST_CROPS : MOST;
    const hits = chosen().slice(0, most);
    save.disabled = true;
    try {
      const name = await withProgress(saveExport(choice.value, hits));
      toast(`${number(hits.length)} hits are in ${name}.`);
    } catch (error) {
      toast(error instanceof Trouble ? `${error.message}. ${error.hint}` : String(error));
    } finally {
      save.disabled = false;
    }
  };

  return {
    show() {
      const count = grid.selected.size;
      words.textContent = count ? `${number(count)} selected` : "";
      none.hidden = count === 0;
      save.textContent = count ? "Export selected" : "Export";
      save.title = count ? "" : `The hits that are loaded, ${number(Math.min(MOST, grid.loaded.length))}`;
    },
  };
}
