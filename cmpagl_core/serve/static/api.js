// Asks the server. An error that it tells has the command line's sentence.

export class Trouble extends Error {
  constructor(detail, hint = "", status = 0) {
    super(detail);
    this.hint = hint;
    this.status = status;
  }
}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server does not answer.", "Start it again with `cmpagl serve`, then try again.");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const hint = problem.hint ?? "";
  const detail = problem.detail ?? `The server answered ${answer.status}.`;
  throw new Trouble(hint && detail.endsWith(`; ${hint}`) ? detail.slice(0, -hint.length - 2) : detail, hint, answer.status);
}

export async function askJson(address, options) {
  return (await ask(address, options)).json();
}

/** A page of hits. */
export function search(parameters, { offset, k, upload, uploadWeight, signal }) {
  const asked = new URLSearchParams(parameters);
  asked.set("details", "true");
  asked.set("k", k);
  if (offset) asked.set("offset", offset);
  if (!upload) return askJson(`/api/search?${asked}`, { signal });
  if (uploadWeight !== 1) asked.set("image_weight", uploadWeight);
  const form = new FormData();
  form.append("image", upload, upload.name || "pasted image");
  return askJson(`/api/search?${asked}`, { method: "POST", body: form, signal });
}

/** Sends the chosen hits and saves the file that comes back. */
export async function saveExport(format, hits) {
  const body = JSON.stringify({ format, hits: hits.map((hit) => ({ row: hit.row, score: hit.score })) });
  const answer = await ask("/api/export", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  const name = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") ?? "")?.[1] ?? "hits";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  return name;
}
