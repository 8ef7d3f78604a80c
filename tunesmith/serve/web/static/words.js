// Figures as short words, as the terminal says them.

export function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 999.5) return `${unit === "B" || count >= 9.95 ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}

/** The largest unit alone: 40 s, 3 min, 5 h, 12 d. */
export function age(seconds) {
  for (const [name, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= length) return `${Math.round(seconds / length)} ${name}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

/** h:mm:ss. */
export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const two = value => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

/** Four digits of a number, anything else as it is, – for nothing. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (value === 0) return "0";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(4)));
}

/** A headline's figure, three decimals at most; a task of one's own can give one that is no number. */
export function rounded(value) {
  return value === null || value === undefined ? "–" : number(Number(value.toFixed(3)));
}

export function signed(value) {
  return sign(value, number);
}

/** A score: as many decimals in every line, so that they can be compared by eye. */
export function score(value) {
  return value === null || value === undefined ? "–" : Math.abs(value) >= 100 ? number(value) : value.toFixed(4);
}

export function signedScore(value) {
  return sign(value === null || value === undefined ? value : Number(value.toFixed(4)), score);
}

function sign(value, words) {
  return value === null || value === undefined ? "–" : `${value < 0 ? "−" : value > 0 ? "+" : ""}${words(Math.abs(value))}`;
}
