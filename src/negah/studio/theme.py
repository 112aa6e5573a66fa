"""How the studio looks: the colours and letters of the survey's report, nothing fetched from anywhere."""

from typing import Any

SANS = (
    "system-ui",
    "-apple-system",
    "Segoe UI",
    "Roboto",
    "Helvetica Neue",
    "Noto Sans",
    "Liberation Sans",
    "sans-serif",
)
MONO = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "Liberation Mono", "monospace")
LIGHT = {
    "body_background_fill": "#faf9f6", "background_fill_primary": "#ffffff", "background_fill_secondary": "#f4f2ec",
    "body_text_color": "#1c2024", "body_text_color_subdued": "#5d646c", "border_color_primary": "#e3e0d8",
    "border_color_accent": "#b36b00", "color_accent_soft": "#f3dfba", "link_text_color": "#8f5600",
    "block_background_fill": "#ffffff", "block_label_text_color": "#5d646c", "input_background_fill": "#ffffff",
    "input_border_color": "#cfcabd", "input_border_width": "1px", "input_placeholder_color": "#6d747c",
    "button_primary_background_fill": "#8f5600", "button_primary_background_fill_hover": "#744600",
    "button_primary_text_color": "#ffffff", "button_primary_border_color": "#8f5600",
    "button_secondary_background_fill": "#f4f2ec", "button_secondary_background_fill_hover": "#eae6dc",
    "button_secondary_text_color": "#1c2024", "button_secondary_border_color": "#d9d4c7",
    "slider_color": "#b36b00", "checkbox_background_color_selected": "#8f5600",
    "checkbox_border_color_selected": "#8f5600", "table_even_background_fill": "#ffffff",
    "table_odd_background_fill": "#faf9f6",
}  # fmt: skip
DARK = {
    "body_background_fill": "#131619", "background_fill_primary": "#1a1e22", "background_fill_secondary": "#20252a",
    "body_text_color": "#e9e7e2", "body_text_color_subdued": "#a5abb2", "border_color_primary": "#2b3036",
    "border_color_accent": "#f2b544", "color_accent_soft": "#4a3a17", "link_text_color": "#f2b544",
    "block_background_fill": "#1a1e22", "block_label_text_color": "#a5abb2", "input_background_fill": "#131619",
    "input_border_color": "#3a4148", "input_border_width": "1px", "input_placeholder_color": "#8c939a",
    "button_primary_background_fill": "#f2b544", "button_primary_background_fill_hover": "#ffcb66",
    "button_primary_text_color": "#1b1607", "button_primary_border_color": "#f2b544",
    "button_secondary_background_fill": "#262c32", "button_secondary_background_fill_hover": "#30373e",
    "button_secondary_text_color": "#e9e7e2", "button_secondary_border_color": "#3a4148",
    "slider_color": "#f2b544", "checkbox_background_color_selected": "#f2b544",
    "checkbox_border_color_selected": "#f2b544", "table_even_background_fill": "#1a1e22",
    "table_odd_background_fill": "#171b1f",
}  # fmt: skip

CSS = """
:root { --color-accent: #8f5600; }
.dark { --color-accent: #f2b544; }
.gradio-container { width: 100% !important; max-width: min(1240px, 100vw) !important; overflow-x: clip !important;
  margin: 0 auto !important; }
.gradio-container .fillable { padding: 0 22px 40px !important; max-width: min(1240px, 100vw) !important; }
.gradio-container .fillable { box-sizing: border-box; }
.gradio-container .fillable > .wrap { padding: 0 !important; }
.gradio-container .wrap.zero, .tabs, .tab-wrapper { min-width: 0; max-width: 100%; }
.gradio-container footer { display: none !important; }
#masthead { padding: 22px 2px 6px; }
#masthead h1 { margin: 0; font-size: 26px; font-weight: 600; letter-spacing: -.01em; line-height: 1.2; }
#masthead h1 b { color: var(--border-color-accent); font-weight: 600; }
#masthead p { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 15px; max-width: 70ch; }
.lead, .lead p { color: var(--body-text-color-subdued) !important; font-size: 15px; max-width: 90ch; }
.lead p { margin: 0 !important; padding: 2px; }
.results h3 { margin: 20px 0 8px !important; font-size: 16px; }
.results h3:first-child { margin-top: 2px !important; }
table.file-preview, .file-preview tr { padding: 0 !important; }
.files button[aria-label^=Remove], .files button[aria-label^=Clear] { display: none; }
button[role=tab] { font-size: 15.5px !important; }
:focus-visible { outline: 2px solid var(--border-color-accent) !important; outline-offset: 2px; }
.told { min-height: 0; padding: 0 2px; }
.told > div { padding: 0; }
.told .step { display: flex; align-items: center; gap: 12px; font-size: 14.5px; color: var(--body-text-color-subdued); }
.told progress { flex: 1; max-width: 260px; height: 8px; accent-color: var(--border-color-accent); }
.told .line { font-size: 15px; padding: 10px 14px; border-left: 3px solid var(--border-color-accent);
  background: var(--background-fill-secondary); border-radius: 0 6px 6px 0; overflow-wrap: anywhere; }
.told .bad { border-color: #a4372c; }
.dark .told .bad { border-color: #f08a7c; }
.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 0 22px; margin: 0; }
.totals div { padding: 8px 0 9px; border-top: 1px solid var(--border-color-primary); }
.totals dt { color: var(--body-text-color-subdued); font-size: 14px; }
.totals dd { margin: 0 !important; font-size: 20px; line-height: 1.25; font-weight: 500; overflow-wrap: anywhere; }
.totals small { display: block; margin-top: 2px; font-size: 13px; font-weight: 400; line-height: 1.4;
  color: var(--body-text-color-subdued); }
.totals div:first-child dd { color: var(--border-color-accent); }
.note { margin: 2px 0 !important; font-size: 14px; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.map img { cursor: crosshair; }
.page iframe { display: block; width: 100%; height: min(86vh, 940px); border: 1px solid var(--border-color-primary);
  border-radius: 8px; background: var(--body-background-fill); }
.empty { border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 34px 24px; font-size: 15px;
  color: var(--body-text-color-subdued); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell, 170px)), 1fr));
  gap: 16px 14px; margin: 0; padding: 0; list-style: none; }
.sheet li { margin: 0; min-width: 0; }
.sheet img { display: block; width: 100%; height: auto; border-radius: 6px; image-rendering: pixelated;
  background: var(--background-fill-secondary); }
.sheet p { margin: 5px 0 0; font-size: 14px; line-height: 1.4; overflow-wrap: anywhere; }
.sheet p small { display: block; font-size: 13px; color: var(--body-text-color-subdued); }
.stars { display: flex; flex-wrap: wrap; gap: 10px 34px; }
.stars figure { margin: 0; width: min(100%, 270px); } .stars figcaption { font-size: 15px; }
.stars svg, svg.graph { width: 100%; height: auto; display: block; }
.stars line, .graph line { stroke: var(--body-text-color-subdued); stroke-opacity: .6; stroke-width: 1.5; }
.stars text, .graph text { font-size: 13px; text-anchor: middle; fill: var(--body-text-color); }
.stars text.small { font-size: 12px; fill: var(--body-text-color-subdued); }
.stars circle, .graph circle { fill: var(--background-fill-secondary); stroke: var(--body-text-color-subdued); }
.stars circle.node, .graph circle.node { stroke: var(--border-color-accent); stroke-width: 2; }
.graph circle.bad { stroke: #c2382b; stroke-width: 3; stroke-dasharray: 5 3; }
.stars circle.m0 { fill: #f3c969; } .stars circle.m1 { fill: #9cc3e6; } .stars circle.m2 { fill: #b9d99a; }
.stars circle.m3 { fill: #e3a9c0; } .stars circle.m4 { fill: #c9b7e4; } .stars circle.m5 { fill: #d6cfc0; }
.stars [class^=m] + text { fill: #1c2024; }
.plot { max-width: 620px; padding: 6px 0; } .plot svg { width: 100%; height: auto; display: block; }
.plot svg.graph { max-width: 400px; }
.plot.wide { max-width: none; min-width: 560px; }
.scrolled { overflow-x: auto; } .scrolled td { white-space: nowrap; }
.results .lead { margin: 10px 0 14px; }
.results details { border-top: 1px solid var(--border-color-primary); padding: 9px 0; }
.results summary { cursor: pointer; font-weight: 600; } .results summary ~ p { margin: 6px 0; }
.prose table.plain, table.plain { width: 100%; border: 0 !important; border-collapse: collapse; font-size: 14.5px;
  font-variant-numeric: tabular-nums; }
.prose .plain thead, .prose .plain tbody, .prose .plain tr { border: 0 !important; }
.prose .plain th, .prose .plain td, .plain th, .plain td { text-align: left; padding: 7px 14px 7px 0; border: 0;
  border-top: 1px solid var(--border-color-primary); vertical-align: top; }
.prose .plain th, .plain th { font-weight: 600; border-top: 0; color: var(--body-text-color-subdued); }
@media (max-width: 640px) {
  .gradio-container .fillable { padding: 0 14px 32px !important; }
  button[role=tab] { padding-inline: 9px !important; font-size: 15px !important; }
  #masthead { padding: 14px 0 2px; }
  .page iframe { height: 84vh; }
  .totals { grid-template-columns: 1fr 1fr; gap: 0 18px; }
  .totals dd { font-size: 19px; }
  .sheet { --cell: 130px !important; }
}
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important; } }
"""

SCRIPT = """() => {
  const mend = () => document.querySelectorAll("button[aria-label='common.upload']:has(button)").forEach((outer) => {
    outer.setAttribute("role", "group");
    outer.setAttribute("aria-label", "Add files");
    outer.title = "Add files";
    outer.tabIndex = -1;
  });
  new MutationObserver(mend).observe(document.body, {childList: true, subtree: true});
}"""
"""What Gradio's button to add files lacks: it is a button around another, named by a word that nobody translated.

The inner one does the work; the outer one becomes a group with a name, which the keyboard passes over.
"""


def theme() -> Any:
    """A theme of Gradio; its fonts are those of the reader's system."""
    import gradio as gr

    accents = {"loader_color": "#b36b00"}
    return gr.themes.Base(
        primary_hue="amber", neutral_hue="stone", radius_size="md", font=SANS, font_mono=MONO,
    ).set(**accents, **LIGHT, **{f"{name}_dark": colour for name, colour in DARK.items()})  # fmt: skip
