"""The parts of the page that never change; `live.js` fills them, `style.css` dresses them."""

from __future__ import annotations

__all__ = ["GIVEN_UP", "HEADER", "HINT", "MEMORY", "OWN_CLIP", "SAVED", "STAGE", "VIEWER", "WEBCAM"]

HEADER = """
<header id="top">
  <div class="brand"><span class="mark"></span>vismem</div>
  <p>A camera goes in. A memory of fixed size comes out. Ask it.</p>
  <div class="meter" data-testid="meter" title="bytes held of the budget">
    <span><b data-fact="bytes" data-testid="bytes">–</b> of <span data-fact="budget"
      data-testid="budget-held">–</span></span>
    <div class="bar"><i id="share"></i></div>
  </div>
</header>
"""

STAGE = """
<section id="stage" data-testid="stage" data-status="idle" aria-label="what it sees now">
  <canvas id="live" data-testid="live" width="640" height="360"></canvas>
  <div class="pills">
    <span class="pill"><i class="dot"></i><span data-live="said" data-testid="status"></span></span>
    <span class="pill quiet"><span data-live="people" data-testid="people"></span><span
      id="shown-fps" data-testid="fps"></span></span>
  </div>
  <div id="curtain" data-testid="curtain"></div>
</section>
"""

MEMORY = """
<section id="memory" data-testid="memory">
  <div class="head">
    <h2>What it remembers</h2>
    <p><b data-fact="moments" data-testid="moments-count">0</b> moments<span id="scenes"></span>
      stand for <b data-fact="frames" data-testid="frames-count">0</b> looks over
      <b data-fact="span">0 s</b></p>
  </div>
  <div id="timeline" data-testid="timeline" tabindex="0" aria-label="moments, oldest first"></div>
  <div id="map" data-testid="map"></div>
</section>
"""

HINT = """
<p class="hint">It has been watching since you opened this page, and keeps a little of each moment
within the budget above. Ask when something was there, how many, or what happened. What it has not
seen, it says.</p>
"""

GIVEN_UP = """
<section id="given-up" data-testid="given-up">
  <div class="head"><h2>What it gave up</h2><p>counted, never silent</p></div>
  <dl>
    <div><dt data-fact="merged" data-testid="merged">0</dt>
      <dd><b>merged</b> moments that looked alike, to keep the budget</dd></div>
    <div><dt data-fact="crowded" data-testid="crowded">0</dt>
      <dd><b>let go</b> when even merging left no room</dd></div>
    <div><dt data-fact="forgotten" data-testid="forgotten">0</dt>
      <dd><b>forgotten</b> because you asked</dd></div>
    <div><dt data-fact="dropped" data-testid="dropped">0</dt>
      <dd><b>missed</b> frames that came too fast to look at</dd></div>
  </dl>
</section>
"""

OWN_CLIP = """
<label class="drop" data-testid="clip-drop">
  <input type="file" id="clip-file" data-testid="clip-file" accept="video/*,.mkv,.avi">
  <span>Choose a clip, or drop one here</span>
  <small>It stays on this machine and is deleted when you leave the page.</small>
</label>
"""

WEBCAM = """
<div class="drop" data-testid="webcam">
  <button type="button" id="webcam-button" data-testid="webcam-button">Start the webcam</button>
  <small id="webcam-said">Pictures go to this machine alone. None is written to a disk.</small>
</div>
"""

SAVED = """
<div class="saved">
  <a id="memory-save" data-testid="memory-save" download="memory.vismem" href="#">Save</a>
  <label><input type="file" id="memory-file" data-testid="memory-file"
    accept=".vismem,.zip,.tar">Load</label>
  <small>The whole memory, thumbnails included, as one file.</small>
</div>
"""

VIEWER = """
<dialog id="viewer" data-testid="viewer" aria-label="a moment">
  <img id="viewer-picture" data-testid="viewer-picture" alt="the stored picture of the moment">
  <div class="caption">
    <h3 id="viewer-title" data-testid="viewer-title"></h3>
    <p id="viewer-when" data-testid="viewer-when"></p>
    <p id="viewer-more" class="faint"></p>
  </div>
  <button type="button" id="viewer-close" data-testid="viewer-close" aria-label="close">×</button>
</dialog>
<div id="notice" data-testid="notice" role="status"></div>
"""
