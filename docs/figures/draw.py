"""Draws the figures of the meta-gradient page as SVG: ``python docs/figures/draw.py``.

The drawings are part of their pages, so that ``currentColor`` follows a light or a dark theme.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

import npmeta as nm

SUPPORT, QUERY = "#3b87c8", "#dd7f12"

#: What both drawings begin with: how lines and letters look, and an arrow head of each colour.
STYLE = """<style>
.d text { font: italic 17px Georgia, "Times New Roman", serif; fill: currentColor }
.d text.w { font: 14px system-ui, sans-serif }
.d .i { font-size: 12px }
</style>"""


def arrow_head(name, colour):
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0.8 L10 5 L0 9.2 z" fill="{colour}"/></marker>'
    )


def svg(width, height, title, prefix, parts):
    heads = [("ink", "currentColor"), ("s", SUPPORT), ("q", QUERY)]
    return "\n".join(
        [
            f'<svg class="d" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" role="img" aria-label="{title}">',
            STYLE,
            "<defs>" + "".join(arrow_head(f"{prefix}-{name}", c) for name, c in heads) + "</defs>",
            *parts,
            "</svg>\n",
        ]
    )


def line(start, end, colour="currentColor", head="", width=1.6, dash=""):
    (x1, y1), (x2, y2) = start, end
    extra = f' marker-end="url(#{head})"' if head else ""
    extra += f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{extra}/>'
    )


def text(at, letters, anchor="middle", words=False, colour=""):
    """``letters`` may have _{subscripts} and ^{superscripts}."""
    kind = ' class="w"' if words else ""
    kind += f' style="fill: {colour}"' if colour else ""
    pieces, offset = [], 0
    for piece in re.split(r"([_^]\{.*?\})", letters):
        shift = {"_": 5, "^": -6}.get(piece[:1], 0) if piece.endswith("}") else 0
        small = ' class="i"' if shift else ""
        shown = piece[2:-1] if shift else piece
        if shown:
            pieces.append(f'<tspan{small} dy="{shift - offset}">{shown}</tspan>')
            offset = shift
    return (
        f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"{kind}>{"".join(pieces)}</text>'
    )


# --- the two loops, step by step -----------------------------------------------------------------


def chain():
    """φ forwards, λ backwards."""
    xs, top, bottom, half = [84, 272, 460, 648], 50, 150, 34
    parts = []
    for s, x in enumerate(xs):
        parts.append(text((x, top + 5), f"φ_{{{s}}}"))
        parts.append(text((x, bottom + 5), f"λ_{{{s}}}"))
        parts.append(line((x, top + 18), (x, bottom - 18), width=0.8, dash="2 4"))
    parts.append(text((xs[0] - 24, top + 5), "θ =", anchor="end"))
    for s, (left, right) in enumerate(pairwise(xs)):
        middle = (left + right) / 2
        parts.append(line((left + half, top), (right - half, top), SUPPORT, "chain-s"))
        parts.append(text((middle, top - 14), f"− α ∇L^{{S}}(φ_{{{s}}})"))
        parts.append(line((right - half, bottom), (left + half, bottom), SUPPORT, "chain-s"))
        parts.append(text((middle, bottom + 26), f"− H_{{{s}}} (α λ_{{{s + 1}}})"))
    end, level = xs[-1] + 122, (top + bottom) / 2
    parts.append(line((xs[-1] + half, top), (end - 18, level - 12), QUERY, "chain-q"))
    parts.append(text((end + 2, level + 5), "L^{Q}"))
    parts.append(line((end - 18, level + 12), (xs[-1] + half, bottom), QUERY, "chain-q"))
    parts.append(text((xs[-1] + half + 50, bottom + 10), "∇L^{Q}(φ_{3})", anchor="start"))
    return svg(830, 186, "Steps from theta to phi 3, and the cotangents back", "chain", parts)


# --- the same in a plane --------------------------------------------------------------------------


def plane():
    """An inner loop on two parameters, and the two meta-gradients at its beginning."""
    turn = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    A, B = turn @ np.diag([0.3, 2.2]) @ turn.T, np.diag([0.8, 1.1])
    c, d, theta = np.array([1.3, -0.1]), np.array([0.35, 0.95]), np.array([-2.1, 0.55])
    tasks = nm.TaskBatch(A[None], c[None], B[None], d[None])
    settings = {"inner_lr": 0.3, "inner_steps": 3}
    maml = nm.MAML(nm.Quadratic(2), **settings)
    phi = [maml.adapt(theta, A[None], c[None], steps=s)[0] for s in range(4)]
    exact = maml.meta_gradient(theta, tasks).grad
    first = nm.MAML(nm.Quadratic(2), first_order=True, **settings).meta_gradient(theta, tasks).grad

    def place(point):
        return 350 + 130 * point[0], 200 - 130 * point[1]

    parts = []
    for matrix, centre, colour, name, side in (
        (A, c, SUPPORT, "L^{S}", 16),
        (B, d, QUERY, "L^{Q}", -10),
    ):
        values, axes = np.linalg.eigh(matrix)
        angle = -np.degrees(np.arctan2(axes[1, 0], axes[0, 0]))
        x, y = place(centre)
        for level in (0.04, 0.16, 0.36, 0.64):
            rx, ry = 130 * np.sqrt(2 * level / values)
            parts.append(
                f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{rx:.1f}" ry="{ry:.1f}" fill="none" '
                f'stroke="{colour}" stroke-opacity="0.45" '
                f'transform="rotate({angle:.1f} {x:.1f} {y:.1f})"/>'
            )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')
        parts.append(text((x + side, y + (8 if side > 0 else -6)), name, colour=colour))
    for start, end in pairwise(phi):
        parts.append(line(place(start), place(end), SUPPORT, "plane-s", 2))
    for start, gradient, head, dash in (
        (phi[-1], first, "plane-q", ""),
        (theta, first, "plane-q", "5 4"),
        (theta, exact, "plane-ink", ""),
    ):
        colour = QUERY if head == "plane-q" else "currentColor"
        end = start - 0.75 * gradient / np.linalg.norm(first)
        parts.append(line(place(start), place(end), colour, head, 2, dash))
    for point in phi:
        x, y = place(point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="currentColor"/>')
    for letters, point, (dx, dy) in (
        ("θ", phi[0], (-14, 4)),
        ("φ_{1}", phi[1], (-6, 24)),
        ("φ_{2}", phi[2], (2, 26)),
        ("φ_{3}", phi[3], (12, 22)),
        ("− λ_{3}", phi[3] - 0.75 * first / np.linalg.norm(first), (14, -6)),
        ("− λ_{3}", theta - 0.75 * first / np.linalg.norm(first), (18, -6)),
        ("− λ_{0}", theta - 0.75 * exact / np.linalg.norm(first), (24, 4)),
    ):
        x, y = place(point)
        parts.append(text((x + dx, y + dy), letters))
    return svg(740, 375, "An inner loop in the plane, and two meta-gradients", "plane", parts)


FIGURES = {"chain.svg": chain, "plane.svg": plane}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
