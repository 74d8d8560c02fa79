// Search over the words of all pages, in the browser: no server, no library.
const box = document.getElementById("search");
const list = document.getElementById("found");
let pages = null;

function score(page, words) {
  const title = page.title.toLowerCase(), text = page.text.toLowerCase();
  if (!words.every((word) => title.includes(word) || text.includes(word))) return 0;
  return words.reduce((sum, word) => sum + (title.includes(word) ? 20 : 0) + Math.min(text.split(word).length - 1, 9), 0);
}

function excerpt(page, word) {
  const at = page.text.toLowerCase().indexOf(word);
  return at < 0 ? "" : page.text.slice(Math.max(0, at - 60), at + 100).replace(/\s+/g, " ");
}

function entry(page, word) {
  const item = document.createElement("li"), link = document.createElement("a"), small = document.createElement("small");
  link.href = `${box.dataset.root}/${page.page}`;
  link.textContent = page.title;
  small.textContent = excerpt(page, word);
  item.append(link, small);
  return item;
}

box.addEventListener("input", async () => {
  pages ??= await (await fetch(`${box.dataset.root}/search.json`)).json();
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? pages.map((page) => [score(page, words), page]).filter(([points]) => points) : [];
  found.sort((one, other) => other[0] - one[0]);
  list.replaceChildren(...found.slice(0, 12).map(([, page]) => entry(page, words[0])));
});
