// The map of the hits: footprints over a coastline and a graticule, and over tiles where a server for them was given.

import { byId, number } from "./elements.js";

const SMALL_PX = 9; // footprints that are smaller are drawn as dots

async function leaflet() {
  await import("./leaflet/leaflet.js");
  return window.L;
}

/** Loads Leaflet and draws the map's ground. open(row), hover(row or null): on a footprint. */
export async function makeMap(setup, { open, hover }) {
  const L = await leaflet();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const map = L.map("map", {
    attributionControl: false, worldCopyJump: true, minZoom: 1, maxZoom: 19,
    zoomAnimation: !still, fadeAnimation: !still, markerZoomAnimation: !still,
  }).setView([20, 10], 1);
  const ground = L.layerGroup().addTo(map);
  const drawn = L.featureGroup().addTo(map);
  const layers = new Map(); // row -> layer
  let hits = [];
  let marked = null;

  if (setup.tiles) L.tileLayer(setup.tiles, { maxZoom: 19 }).addTo(map);
  else {
    const land = await (await fetch(new URL("./land-110m.json", import.meta.url))).json();
    for (const shift of [-360, 0, 360]) { // so that the world goes on when it is dragged
      const coordsToLatLng = ([lon, lat]) => L.latLng(Math.max(-85, lat), lon + shift);
      L.geoJSON(land, { interactive: false, coordsToLatLng, style: { className: "land" } }).addTo(ground);
    }
  }
  const lines = L.layerGroup().addTo(ground);
  const drawLines = () => {
    lines.clearLayers();
    const step = [30, 30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01][Math.min(12, map.getZoom())];
    const box = map.getBounds().pad(0.5);
    const [west, east] = [Math.max(-540, box.getWest()), Math.min(540, box.getEast())];
    const [south, north] = [Math.max(-80, box.getSouth()), Math.min(80, box.getNorth())];
    const line = (points) => L.polyline(points, { interactive: false, className: "graticule" }).addTo(lines);
    for (let lon = Math.ceil(west / step) * step; lon <= east; lon += step) line([[south, lon], [north, lon]]);
    for (let lat = Math.ceil(south / step) * step; lat <= north; lat += step) line([[lat, west], [lat, east]]);
  };

  const boundsOf = (footprint) => L.geoJSON(footprint).getBounds();
  const draw = () => {
    drawn.clearLayers();
    layers.clear();
    for (const hit of [...hits].reverse()) { // the best on top
      if (!hit.footprint) continue;
      const bounds = boundsOf(hit.footprint);
      const [a, b] = [map.latLngToContainerPoint(bounds.getNorthWest()), map.latLngToContainerPoint(bounds.getSouthEast())];
      const isSmall = Math.max(Math.abs(b.x - a.x), Math.abs(b.y - a.y)) < SMALL_PX;
      const layer = isSmall
        ? L.circleMarker(bounds.getCenter(), { radius: 5, className: "footprint" })
        : L.geoJSON(hit.footprint, { style: { className: "footprint" } });
      layer.bindTooltip(`${hit.rank}. ${hit.image_id}`, { sticky: true });
      layer.on("click", () => open(hit.row)).on("mouseover", () => hover(hit.row)).on("mouseout", () => hover(null));
      layer.addTo(drawn);
      layers.set(hit.row, layer);
    }
    mark(marked);
  };
  const mark = (row) => {
    marked = row;
    for (const [one, layer] of layers) {
      const paths = layer.getLayers ? layer.getLayers() : [layer];
      for (const path of paths) path.getElement()?.classList.toggle("marked", one === row);
      if (one === row) layer.bringToFront();
    }
  };
  map.on("zoomend", draw);
  map.on("moveend resize", drawLines);
  new ResizeObserver(() => map.invalidateSize({ animate: false })).observe(byId("map"));
  drawLines();

  return {
    mark,
    show(found, { fit = true } = {}) {
      hits = found;
      draw();
      const placed = hits.filter((hit) => hit.footprint);
      byId("map-note").textContent = placed.length
        ? `${number(placed.length)} of the ${number(hits.length)} hits that are loaded have a place.`
        : "None of these hits has a place.";
      if (fit && placed.length) map.fitBounds(drawn.getBounds().pad(0.15), { maxZoom: 15, animate: false });
    },
    resize: () => map.invalidateSize({ animate: false }),
    box() {
      const box = map.getBounds();
      const wrap = (lon) => ((((lon + 180) % 360) + 360) % 360) - 180;
      const isWhole = box.getEast() - box.getWest() >= 360;
      const [west, east] = isWhole ? [-180, 180] : [wrap(box.getWest()), wrap(box.getEast())];
      const [south, north] = [Math.max(-90, box.getSouth()), Math.min(90, box.getNorth())];
      return [west, south, east, north].map((value) => Number(value.toFixed(4))).join(",");
    },
  };
}
