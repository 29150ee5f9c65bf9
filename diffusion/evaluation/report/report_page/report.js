
"use strict";

// Tables: a column's button sorts by it, the better values first; what is missing stays last.
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const first = head.dataset.better === "lower" ? "ascending" : "descending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => parseFloat(row.cells[column].dataset.value);
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return isNaN(x) - isNaN(y) || (isNaN(x) ? 0 : sign * (x - y));
    });
    table.tBodies[0].append(...rows);
  }));
}

// Two pictures, one over the other.
const compare = document.querySelector(".compare");
if (compare) {
  const part = (name) => compare.querySelector("." + name);
  const [video, frame, left, right, zoom] = ["video", "frame", "left", "right", "zoom"].map(part);
  const pictures = document.querySelector(".pictures");
  const ofVideo = () => [...pictures.children[video.value].children];

  const offer = (select, values, preferred) => {
    const before = values.includes(select.value) ? select.value : preferred;
    select.replaceChildren(...values.map((value) => new Option(value)));
    select.value = before;
  };
  const showVideo = () => {
    const unique = (key) => [...new Set(ofVideo().map((picture) => picture.dataset[key]))];
    const [frames, models] = [unique("frame"), unique("model")];
    offer(frame, frames, frames[Math.floor(frames.length / 2)]);
    offer(left, models, models[0]);
    offer(right, models, models[1] ?? models[0]);
    showPictures();
  };
  const showPictures = () => {
    const find = (model) => ofVideo().find((picture) =>
      picture.dataset.model === model && picture.dataset.frame === frame.value);
    for (const [place, select, tag] of [["under", left, "tag-left"], ["over", right, "tag-right"]]) {
      const picture = find(select.value);
      part(place).src = picture.src;
      part(place).alt = picture.alt;
      part(tag).textContent = select.value;
    }
    const shown = find(left.value);
    const scale = Number(zoom.value) / window.devicePixelRatio;
    part("stage").style.width = zoom.value === "fit" ? "" : shown.width * scale + "px";
    part("stage").style.aspectRatio = shown.width + " / " + shown.height;
    part("stage").style.maxWidth = zoom.value === "fit" ? `calc(80vh * ${shown.width / shown.height})` : "";
    part("stage").classList.toggle("pixels", zoom.value !== "fit");
  };
  const split = (percent) => {
    part("split").value = percent;
    part("stage").style.setProperty("--split", part("split").value + "%");
  };
  const follow = (event) => {
    const box = part("stage").getBoundingClientRect();
    split(100 * (event.clientX - box.left) / box.width);
  };
  part("stage").addEventListener("pointerdown", (event) => {
    part("stage").setPointerCapture(event.pointerId);
    follow(event);
  });
  part("stage").addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  part("stage").addEventListener("dragstart", (event) => event.preventDefault());
  part("split").addEventListener("input", () => split(part("split").value));
  video.addEventListener("change", showVideo);
  for (const select of [frame, left, right, zoom]) select.addEventListener("change", showPictures);
  pictures.hidden = true;
  compare.hidden = false;
  split(50);
  showVideo();
}

// A player shows its first picture before it plays.
for (const player of document.querySelectorAll("video")) {
  const pictures = document.querySelectorAll(".pictures img");
  const still = [...pictures].find((picture) =>
    picture.parentElement.dataset.name === player.dataset.video && picture.dataset.model === player.dataset.model);
  if (still) player.poster = still.src;
}

// Players: all of one video from its start, or all paused.
for (const button of document.querySelectorAll(".together")) {
  const players = [...button.closest(".players").querySelectorAll("video")];
  button.hidden = players.length === 0;
  button.addEventListener("click", () => {
    const play = players.every((player) => player.paused);
    for (const player of players) {
      if (play) {
        player.currentTime = 0;
        player.play();
      } else {
        player.pause();
      }
    }
    button.textContent = play ? "Pause" : "Play together";
  });
}
