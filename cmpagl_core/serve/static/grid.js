// The hits: only those in sight are elements, and only pages near them are fetched.

import { element, quietly } from "./elements.js";

const PAGE = 120;
const GAP = 14;
const FACTS = 50;
const SPARE_ROWS = 2;

export class Grid {
  /** fetchPage(offset, k) -> {hits}; open(place), changed(): the selection or the focus is another one. */
  constructor(list, scroller, { fetchPage, open, changed, hover, failed }) {
    Object.assign(this, { list, scroller, fetchPage, open, changed, hover, failed });
    this.selected = new Map(); // row -> hit
    this.reset(0);
    const render = () => { if (!this.waiting) this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.render(); }); };
    scroller.addEventListener("scroll", render, { passive: true });
    new ResizeObserver(render).observe(scroller);
    this.fetchSoon = quietly(() => this.fetchInSight(), 40);
    list.addEventListener("keydown", (event) => this.onKey(event));
  }

  reset(total, first = []) {
    this.total = total;
    this.pages = new Map();
    this.hits = new Map(); // place -> hit
    this.focused = 0;
    this.inSight = [0, 0]; // and not what was, which may not be there
    this.cards = new Map(); // place -> element
    this.list.replaceChildren();
    this.best = first[0]?.score ?? 1;
    this.fill(0, first);
    if (first.length) this.pages.set(0, true);
    this.list.hidden = total === 0;
    this.scroller.scrollTop = 0;
    this.render();
  }

  fill(offset, hits) {
    hits.forEach((hit, place) => this.hits.set(offset + place, hit));
    const last = this.hits.get(Math.min(this.total, PAGE) - 1) ?? hits[hits.length - 1];
    if (offset === 0) this.worst = last?.score ?? 0;
  }

  get loaded() {
    return [...this.hits.entries()].sort(([a], [b]) => a - b).map(([, hit]) => hit);
  }

  measure() {
    const narrow = this.list.clientWidth < 520;
    const least = narrow ? 140 : 190;
    const gap = narrow ? 8 : GAP;
    const columns = Math.max(narrow ? 2 : 1, Math.floor((this.list.clientWidth + gap) / (least + gap)));
    const width = (this.list.clientWidth - gap * (columns - 1)) / columns;
    return { columns, gap, width, height: width + FACTS + gap };
  }

  render() {
    if (this.list.hidden || !this.list.clientWidth) return;
    const shape = (this.shape = this.measure());
    this.list.style.height = `${Math.ceil(this.total / shape.columns) * shape.height}px`;
    const top = this.scroller.scrollTop - this.list.offsetTop;
    const first = Math.max(0, Math.floor(top / shape.height) - SPARE_ROWS) * shape.columns;
    const rows = Math.ceil(this.scroller.clientHeight / shape.height) + 2 * SPARE_ROWS + 1;
    const last = Math.min(this.total, first + rows * shape.columns);
    for (const [place, card] of this.cards) {
      if ((place < first || place >= last) && !card.contains(document.activeElement)) {
        card.remove();
        this.cards.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) this.show(place);
    this.inSight = [first, last];
    this.fetchSoon();
  }

  show(place) {
    const { columns, width, height, gap } = this.shape;
    let card = this.cards.get(place);
    if (!card) {
      card = element("li.card", { "aria-posinset": place + 1, "aria-setsize": this.total, "data-place": place });
      this.cards.set(place, card);
      const after = [...this.cards.keys()].filter((one) => one > place).sort((a, b) => a - b)[0];
      this.list.insertBefore(card, after === undefined ? null : this.cards.get(after)); // the order that Tab goes
    }
    card.style.width = `${width}px`;
    card.style.height = `${height - gap}px`;
    card.style.transform = `translate(${(place % columns) * (width + gap)}px, ${Math.floor(place / columns) * height}px)`;
    const hit = this.hits.get(place);
    if (hit && card.dataset.row !== String(hit.row)) this.draw(card, place, hit);
    const button = card.querySelector(".open");
    if (button) button.tabIndex = place === this.focused ? 0 : -1;
    const tick = card.querySelector(".tick");
    if (tick && hit) tick.checked = this.selected.has(hit.row);
    card.classList.toggle("selected", Boolean(hit && this.selected.has(hit.row)));
  }

  draw(card, place, hit) {
    card.dataset.row = hit.row;
    const name = hit.image_id;
    const share = this.best > this.worst ? 12 + (88 * (hit.score - this.worst)) / (this.best - this.worst) : 100;
    const image = element("img", { src: `${hit.thumbnail}?size=320`, alt: "", decoding: "async", draggable: "false" });
    image.addEventListener("error", () => image.replaceWith(element("span.gone", {}, "not there")), { once: true });
    const bar = element("span.share", { "aria-hidden": "true" }, element("i"));
    bar.firstChild.style.width = `${Math.max(4, Math.min(100, share))}%`;
    const open = element(
      "button.open",
      {
        type: "button",
        "aria-label": `${hit.rank}: ${hit.captions[0] ?? name}, score ${hit.score.toFixed(3)}`,
        onclick: () => { this.focused = place; this.open(place); },
        onfocus: () => { this.focused = place; this.hover(hit); },
        onblur: () => this.hover(null),
      },
      image,
      element("span.facts", {}, element("b", {}, String(hit.rank)), element("span.name", { title: name }, name), element("span.score", {}, hit.score.toFixed(3))),
      bar,
    );
    const tick = element("input.tick", { type: "checkbox", tabindex: "-1", "aria-label": `Select ${name}`, onchange: () => this.toggle(place) });
    card.replaceChildren(open, tick);
    card.onmouseenter = () => this.hover(hit);
    card.onmouseleave = () => this.hover(null);
  }

  async fetchInSight() {
    const [first, last] = this.inSight;
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) {
      if (this.pages.has(page)) continue;
      const { pages } = this;
      pages.set(page, true);
      const offset = page * PAGE;
      try {
        const answer = await this.fetchPage(offset, Math.min(PAGE, this.total - offset));
        if (pages !== this.pages) return; // another search has begun
        this.fill(offset, answer.hits);
        this.render();
        this.changed();
      } catch (error) {
        pages.delete(page);
        if (error.name !== "AbortError") this.failed(error);
        return;
      }
    }
  }

  toggle(place) {
    const hit = this.hits.get(place);
    if (!hit) return;
    if (!this.selected.delete(hit.row)) this.selected.set(hit.row, hit);
    this.render();
    this.changed();
  }

  clearSelection() {
    this.selected.clear();
    this.render();
    this.changed();
  }

  selectLoaded() {
    for (const hit of this.loaded) this.selected.set(hit.row, hit);
    this.render();
    this.changed();
  }

  /** Scroll to a hit and put the focus on it. */
  focus(place, { steal = true } = {}) {
    if (!this.total || !this.shape) return;
    this.focused = Math.max(0, Math.min(this.total - 1, place));
    const { columns, height } = this.shape;
    const top = this.list.offsetTop + Math.floor(this.focused / columns) * height;
    const view = this.scroller;
    if (top < view.scrollTop + 60) view.scrollTop = Math.max(0, top - 70);
    else if (top + height > view.scrollTop + view.clientHeight) view.scrollTop = top + height - view.clientHeight;
    this.render();
    if (steal) this.cards.get(this.focused)?.querySelector(".open")?.focus({ preventScroll: true });
  }

  /** Mark the card of an image that is pointed at on the map. */
  mark(row) {
    for (const card of this.cards.values()) card.classList.toggle("marked", row !== null && card.dataset.row === String(row));
  }

  placeOf(row) {
    for (const [place, hit] of this.hits) if (hit.row === row) return place;
    return -1;
  }

  onKey(event) {
    const { columns } = this.shape ?? { columns: 1 };
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -3 * columns, PageDown: 3 * columns };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) {
      const place = this.focused + steps[event.key];
      if (place >= 0 && place < this.total) this.focus(place);
    } else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus(this.total - 1);
    else if (event.key === "x") this.toggle(this.focused);
    else return;
    event.preventDefault();
  }
}
