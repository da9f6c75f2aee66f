// Details of a hit: the image and the scene around it, its captions, and where to go from there.

import { askJson, Trouble } from "./api.js";
import { byId, closeOnOutside, element, toast, withProgress } from "./elements.js";

const AROUND = [[1, "Tile"], [2, "2×"], [4, "4×"], [0, "Scene"]];

export function makeDetails(setup, { like, unlike, step, closed, text }) {
  const dialog = byId("details");
  closeOnOutside(dialog);
  dialog.addEventListener("close", () => closed());
  let hit = null;
  let item = null;
  let around = 1;

  const image = element("img.shown", { alt: "" });
  const outline = element("span.outline", { "aria-hidden": "true", hidden: true });
  const stage = element("div.stage", {}, element("div.fitted", {}, image, outline));
  const zoom = element("div.zoom", { role: "group", "aria-label": "How much of the scene is shown" });
  const facts = element("div.about");

  const show = (factor) => {
    around = factor;
    image.src = `${hit.thumbnail}?size=1024&around=${factor}`;
    image.alt = hit.captions[0] ?? hit.image_id;
    for (const button of zoom.children) button.setAttribute("aria-pressed", String(Number(button.dataset.around) === factor));
    drawOutline();
  };

  /** Where the tile lies in what is shown, as the server cuts it. */
  const drawOutline = () => {
    const scene = item?.scene_size;
    outline.hidden = around === 1 || !hit.window || !scene;
    if (outline.hidden) return;
    const [left, top, width, height] = hit.window;
    const side = (start, length, whole) => {
      const size = around === 0 ? whole : Math.min(around * length, whole);
      const first = around === 0 ? 0 : Math.min(Math.max(0, start + Math.trunc((length - size) / 2)), whole - size);
      return [(100 * (start - first)) / size, (100 * length) / size];
    };
    const [[x, w], [y, h]] = [side(left, width, scene[0]), side(top, height, scene[1])];
    Object.assign(outline.style, { left: `${x}%`, top: `${y}%`, width: `${w}%`, height: `${h}%` });
  };

  const explain = async () => {
    const words = text();
    try {
      const found = await withProgress(askJson(`/api/explain?${new URLSearchParams({ q: words, id: hit.image_id })}`));
      show(1);
      image.src = found.overlay;
      const choice = (words, overlay, pressed) => element("button.quiet", {
        type: "button", "aria-pressed": String(pressed),
        onclick: (event) => {
          image.src = overlay;
          for (const button of event.target.parentElement.children) button.setAttribute("aria-pressed", String(button === event.target));
        },
      }, words);
      facts.querySelector(".explained")?.remove();
      facts.append(element("div.explained", {},
        element("h3", {}, `Match ${found.match_percent.toFixed(0)} %`),
        element("div.words", {}, choice("whole text", found.overlay, true),
          ...found.words.map((word) => choice(`${word.word} ${word.percent.toFixed(0)} %`, word.overlay, false))),
        ...found.notes.map((note) => element("p.soft", {}, note))));
    } catch (error) {
      toast(error instanceof Trouble ? `${error.message}. ${error.hint}` : String(error));
    }
  };

  const copyPath = async () => {
    try {
      await navigator.clipboard.writeText(hit.path);
      toast("The path is copied.");
    } catch {
      toast(hit.path);
    }
  };

  const fact = (name, value) => (value ? [element("dt", {}, name), element("dd", {}, value)] : []);
  const write = () => {
    const window_ = hit.window ? `${hit.window[2]} × ${hit.window[3]} px at ${hit.window[0]}, ${hit.window[1]}` : "";
    const captions = [...new Set(hit.captions)];
    const lines = [
      element("h2", { id: "details-title" }, hit.image_id),
      element("dl", {},
        ...fact("Rank", String(hit.rank)), ...fact("Score", hit.score.toFixed(4)), ...fact("Day", hit.date), ...fact("Tile", window_),
        ...fact("Place", placeOf(hit.footprint)), ...fact("File", hit.path)),
      captions.length ? element("h3", {}, captions.length === 1 ? "Caption" : "Captions") : null,
      captions.length ? element("ul.captions", {}, ...captions.map((one) => element("li", {}, one))) : null,
      element("div.buttons", {},
        element("button", { type: "button", onclick: () => { dialog.close(); like(hit); } }, "More like this"),
        element("button.quiet", { type: "button", onclick: () => { dialog.close(); unlike(hit); } }, "Not like this"),
        setup.explains && text() ? element("button.quiet", { type: "button", onclick: explain }, "Explain") : null,
        element("button.quiet", { type: "button", onclick: copyPath }, "Copy path")),
    ];
    facts.replaceChildren(...lines.filter((line) => line !== null));
  };

  dialog.replaceChildren(
    element("div.frame", {},
      element("div.left", {}, stage, zoom),
      facts,
      element("div.corner", {},
        element("button.plain", { type: "button", "aria-label": "The hit before", onclick: () => step(-1) }, "‹"),
        element("button.plain", { type: "button", "aria-label": "The next hit", onclick: () => step(1) }, "›"),
        element("button.plain", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "×"))),
  );
  image.addEventListener("error", () => { image.alt = "This image cannot be shown. Update the index with `cmpagl index`."; });
  dialog.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
      step(steps[event.key]);
      event.preventDefault();
    }
  });

  return {
    get isOpen() { return dialog.open; },
    async open(chosen) {
      hit = chosen;
      item = null;
      write();
      const choices = hit.window ? AROUND : [];
      zoom.replaceChildren(...choices.map(([factor, name]) => element("button.quiet", { type: "button", "data-around": factor, onclick: () => show(factor) }, name)));
      show(1);
      if (!dialog.open) dialog.showModal();
      const asked = hit;
      if (hit.window) {
        const found = await askJson(`/api/items/${hit.thumbnail.slice("/api/thumbnails/".length)}`).catch(() => null);
        if (asked === hit) { item = found; drawOutline(); }
      }
    },
  };
}

function placeOf(footprint) {
  if (!footprint) return "";
  const ring = footprint.type === "Polygon" ? footprint.coordinates[0] : footprint.coordinates[0][0];
  const corners = ring.slice(0, -1);
  const [lon, lat] = [0, 1].map((axis) => corners.reduce((sum, point) => sum + point[axis], 0) / corners.length);
  return `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`;
}
