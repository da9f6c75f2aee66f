// The parts of a query beside its words: what is added and taken away, each with a slider for its weight.

import { byId, element } from "./elements.js";

const WORDS = { plus: "+", minus: "−", plus_like: "+", minus_like: "−" };

/** Shows the parts; changed(state) is called with a new state. */
export function showParts(state, changed) {
  const rows = state.parts.map((part, place) => textPart(state, part, place, changed));
  if (state.values.like) rows.unshift(likePart(state, changed));
  if (state.upload) rows.unshift(uploadPart(state, changed));
  const box = byId("parts");
  box.replaceChildren(...rows);
  box.hidden = rows.length === 0;
}

function textPart(state, part, place, changed) {
  const isImage = part.kind.endsWith("_like");
  const others = state.parts.filter((_, other) => other !== place);
  const weigh = (weight) => {
    const parts = state.parts.map((one, other) => (other === place ? { ...one, weight } : one));
    changed({ ...state, parts });
  };
  return row({
    sign: WORDS[part.kind],
    image: isImage ? thumbnailOf(part.value) : null,
    name: part.value,
    slider: { value: part.weight, min: 0.1, change: weigh },
    remove: () => changed({ ...state, parts: others }),
  });
}

function likePart(state, changed) {
  const values = { ...state.values };
  delete values.like;
  return row({ sign: "≈", image: thumbnailOf(state.values.like), name: state.values.like, remove: () => changed({ ...state, values }) });
}

function uploadPart(state, changed) {
  const address = URL.createObjectURL(state.upload);
  const image = element("img", { src: address, alt: "", onload: () => URL.revokeObjectURL(address), onerror: () => URL.revokeObjectURL(address) });
  const alone = !state.values.q && !state.parts.length;
  return row({
    sign: state.uploadWeight < 0 ? "−" : "+",
    image,
    name: state.upload.name || "pasted image",
    slider: alone ? null : { value: state.uploadWeight, min: -2, change: (uploadWeight) => changed({ ...state, uploadWeight: uploadWeight || 0.1 }) },
    remove: () => changed({ ...state, upload: null, uploadWeight: 1 }),
  });
}

function thumbnailOf(id) {
  return element("img", { src: `/api/thumbnails/${encodeURIComponent(id)}?size=96`, alt: "" });
}

function row({ sign, image, name, slider, remove }) {
  const children = [element("b", { "aria-hidden": "true" }, sign), image, element("span.name", { title: name }, name)];
  if (slider) {
    const output = element("output", {}, slider.value.toFixed(1));
    const range = element("input", {
      type: "range", min: slider.min, max: 3, step: 0.1, value: slider.value, "aria-label": `Weight of ${name}`,
      oninput: () => { output.textContent = Number(range.value).toFixed(1); },
      onchange: () => slider.change(Number(range.value)),
    });
    children.push(range, output);
  }
  children.push(element("button.plain", { type: "button", "aria-label": `Remove ${name}`, onclick: remove }, "×"));
  const kind = sign === "−" ? "minus" : "plus";
  return element(`div.part.${kind}`, {}, ...children);
}
