// The map of the ring: which replica owns which bucket, and which worker which share of a service.

import { element, find, number } from "./parts.js";
import { sleep } from "./client.js";

const LOOK_MS = 1000;
const COLUMNS = 128;
const HUES = [192, 32, 280, 130, 350, 60, 230, 10]; // far apart, and read in words as well

const color = (index) => (index === null ? "transparent" : `hsl(${HUES[index % HUES.length]} 60% ${52 - 12 * Math.floor(index / HUES.length)}%)`);

async function ask(path) {
  const response = await fetch(new URL(path, document.baseURI), { cache: "no-store" });
  if (!response.ok) throw Object.assign(new Error(`answered ${response.status}`), { status: response.status });
  return response.json();
}

/** Draw a cell for each bucket. */
function draw(canvas, owners) {
  const columns = Math.min(COLUMNS, owners.length);
  canvas.width = columns;
  canvas.height = Math.ceil(owners.length / columns);
  const context = canvas.getContext("2d");
  owners.forEach((owner, bucket) => {
    context.fillStyle = color(owner);
    context.fillRect(bucket % columns, Math.floor(bucket / columns), 1, 1);
  });
}

function row(group, member, ring) {
  const index = ring ? ring.members.indexOf(member.name) : -1;
  const owned = ring ? ring.owners.filter((owner) => owner === index && index >= 0).length : 0;
  const swatch = element("span", "swatch");
  swatch.style.backgroundColor = index < 0 ? "transparent" : color(index);
  const made = element("tr");
  made.dataset.member = member.name;
  made.dataset.buckets = owned;
  const state = element("span", `pill ${member.state}`, member.state);
  const share = ring ? `${number(owned)} of ${number(ring.owners.length)}` : "";
  const heard = `${member.heard_seconds_ago.toFixed(1)} s ago`;
  made.append(
    element("td", "", swatch, member.name),
    element("td", "", group),
    element("td", "", state),
    element("td", "n", share),
    element("td", "n", number(member.connections)),
    element("td", "", heard),
  );
  return made;
}

async function look() {
  const [seen, ring] = await Promise.all([ask("v1/replicas"), ask("v1/ring")]);
  const rows = seen.replicas.map((each) => row("replica", each, ring.replicas));
  const maps = [["replica", ring.replicas]];
  for (const [group, members] of Object.entries(seen.groups)) {
    rows.push(...members.map((each) => row(group, each, ring.groups[group])));
    if (ring.groups[group]) maps.push([group, ring.groups[group]]);
  }
  find("#ring tbody").replaceChildren(...rows);
  const place = find("#ring-maps");
  const shown = maps.map(([group, { owners, members }]) => {
    const figure = element("figure");
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Buckets of ${group}, by owner: ${members.join(", ") || "nobody"}`);
    draw(canvas, owners);
    figure.append(element("figcaption", "aside", `${number(owners.length)} buckets of ${group}`), canvas);
    return figure;
  });
  place.replaceChildren(...shown);
  find("#ring-note").textContent = seen.view.settled ? "all agree" : "being agreed on";
}

async function keepLooking() {
  for (;;) {
    try {
      await look();
    } catch ({ status }) {
      find("#ring-note").textContent = status === 403 ? "for operators: the token does not grant it" : "the gateway does not answer";
      if (status === 403) return;
    }
    await sleep(LOOK_MS);
  }
}

keepLooking();
