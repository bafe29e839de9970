"""Grouped bars on a logarithmic axis as an SVG picture, without any library."""
import html
import math

BAR, GAP, LEFT, TOP, HEIGHT, BOTTOM = 16, 22, 80, 54, 300, 52
COLOURS = ["#1f6feb", "#9aa4b2", "#e3e7ec"]


class Canvas:
    def __init__(self):
        self.parts = []

    def rect(self, x, y, width, height, fill, title=""):
        inside = f"<title>{html.escape(title)}</title>" if title else ""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}" '
                          f'stroke="#666" stroke-width="0.5">{inside}</rect>')

    def text(self, x, y, text, anchor="middle", size=12):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222">'
                          f"{html.escape(text)}</text>")

    def line(self, x1, x2, y):
        self.parts.append(f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')

    def svg(self, width, height):
        return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
                          '<rect width="100%" height="100%" fill="#fff"/>', *self.parts, "</svg>", ""])


def svg(title, series, groups):
    """The picture's text. `series` names up to three bars of a group; `groups` are (what, which, [value or None, …]), those of
    one `what` side by side. Over a group stands how many times its second value the first one is."""
    values = [value for _, _, bars in groups for value in bars if value]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    width = LEFT + (len(series) * BAR + GAP) * len(groups) + 16
    floor = TOP + HEIGHT
    canvas = Canvas()

    def y(value):
        return TOP + HEIGHT * (high - math.log10(value)) / (high - low)

    def middle(group):
        return LEFT + (group + 0.5) * (len(series) * BAR + GAP)

    canvas.text(LEFT, 20, title, anchor="start", size=14)
    for i, name in enumerate(series):
        canvas.rect(LEFT + 170 * i, 30, 12, 12, COLOURS[i])
        canvas.text(LEFT + 170 * i + 18, 40, name, anchor="start")
    for decade in range(low, high + 1):
        canvas.line(LEFT, width - 8, y(10.0**decade))
        canvas.text(LEFT - 8, y(10.0**decade) + 4, f"{10.0 ** decade:,.10g}", anchor="end")
    for i, (what, which, bars) in enumerate(groups):
        left = middle(i) - len(series) * BAR / 2
        for j, value in enumerate(bars):
            if value:
                canvas.rect(left + j * BAR, y(value), BAR - 2, floor - y(value), COLOURS[j], f"{what} {which}, {series[j]}: {value:,.4g}")
        if bars[0] and bars[1]:
            canvas.text(left + BAR - 1, y(max(bars[0], bars[1])) - 5, f"{bars[0] / bars[1]:.2g}x", size=10)
        canvas.text(middle(i), floor + 18, which)
    for what in dict.fromkeys(what for what, _, _ in groups):
        mates = [i for i, group in enumerate(groups) if group[0] == what]
        canvas.text((middle(mates[0]) + middle(mates[-1])) / 2, floor + 40, f"{what}, by sessions")
    return canvas.svg(width, floor + BOTTOM)
