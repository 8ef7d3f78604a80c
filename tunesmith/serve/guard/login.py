"""The page that asks a browser for the token. It needs nothing else of the server: its one style stands in it."""

from __future__ import annotations

import base64
import hashlib
import html

STYLE = """:root { color-scheme: light dark; --ink: #1c2126; --soft: #56616c; --paper: #fff; --edge: #8b95a0;
  --go: #1f6dab; --on: #fff; --stop: #fde8e2; --stop-ink: #8f2400; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --paper: #14181d; --edge: #6b7580;
  --go: #6db5ea; --on: #0b1a26; --stop: #43201a; --stop-ink: #ffb59e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 26rem; margin: 12vh auto 0; padding: 0 16px 32px; }
h1 { font-size: 1.5rem; margin: 0 0 16px; } label { display: block; margin-bottom: 4px; }
input, button { font: inherit; width: 100%; padding: 8px 12px; border: 1px solid var(--edge); border-radius: 6px;
  background: var(--paper); color: var(--ink); }
button { background: var(--go); border-color: var(--go); color: var(--on); font-weight: 600; cursor: pointer; }
:focus-visible { outline: 2px solid var(--go); outline-offset: 2px; }
p { margin: 0 0 14px; } .note { color: var(--soft); font-size: 0.9rem; }
[role=alert] { background: var(--stop); color: var(--stop-ink); padding: 8px 12px; border-radius: 6px; }"""
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
# this one style by its hash; nothing is loaded, nothing runs
LOGIN_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>tunesmith: log in</title><style>{style}</style></head>
<body><main><h1>tunesmith</h1>{said}<form method="post" action="/login">
<p><label for="token">Token</label> <input id="token" name="token" type="password" required autofocus
autocomplete="current-password"></p><input type="hidden" name="next" value="{path}"><p><button>Log in</button></p>
</form><p class="note">It is the line in the file that the server was started with (--token-file).</p></main></body>
</html>
"""


def login_page(path: str, said: str = "") -> bytes:
    """The form, which leads to `path` of this server; `said`: what was wrong with the last try."""
    told = f"<p role=alert>{html.escape(said)}</p>" if said else ""
    return _PAGE.format(style=STYLE, said=told, path=html.escape(path)).encode()
