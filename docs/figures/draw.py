"""Draws the figures of the mathematics and of the walk as SVG: ``python docs/figures/draw.py``.

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
.d text.c { font: 600 12px ui-monospace, Menlo, Consolas, monospace }
.d text.f { font: 11px ui-monospace, Menlo, Consolas, monospace; opacity: 0.75 }
.d text.l { font-size: 14px }
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


def text(at, letters, anchor="middle", kind="", colour=""):
    """``letters`` may have _{subscripts} and ^{superscripts}; ``kind`` is a class of STYLE."""
    kind = f' class="{kind}"' if kind else ""
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


# --- a meta-gradient in the code ------------------------------------------------------------------

#: What is called, in this order, where it is, and the place of its box: column, and top.
WALK = {
    "Adapts.meta_gradient": ("algorithms/adapts.py", "there", 26),
    "GradientSteps.prepared": ("algorithms/gradient_steps.py", "there", 104),
    "GradientSteps.chunks": ("algorithms/gradient_steps.py", "there", 182),
    "MAML.of_tasks": ("algorithms/maml.py", "there", 260),
    "GradientSteps.meta_gradient": ("algorithms/gradient_steps.py", "between", 328),
    "GradientSteps.hold": ("algorithms/gradient_steps.py", "there", 352),
    "adapt": ("bilevel/adaptation.py", "there", 474),
    "forward": ("network/passes.py", "there", 590),
    "backward": ("network/passes.py", "there", 590),
    "Risk.at": ("bilevel/objective.py", "between", 474),
    "pull_back": ("bilevel/adaptation.py", "back", 474),
    "forward_dot": ("network/passes.py", "back", 590),
    "backward_dot": ("network/passes.py", "back", 590),
    "MetaGradient.join": ("algorithms/base.py", "back", 182),
}


def box(x, top, names, below, half=108):
    """A box of height 42, with what is called in it, and its file."""
    return [
        f'<rect x="{x - half}" y="{top}" width="{2 * half}" height="42" rx="5" fill="none" '
        'stroke="currentColor" stroke-width="1.2"/>',
        *captions(x, top, names, below),
    ]


def captions(x, top, names, below):
    return [text((x, top + 18), names, kind="c"), text((x, top + 34), below, kind="f")]


def walk():
    """Down with the prepared problem on the left, up with the cotangent on the right."""
    columns = {"there": 166, "between": 368, "back": 570}
    left, middle, right = columns.values()
    parts = []
    for floor, top, bottom in (("algorithms", 8, 408), ("bilevel", 414, 534), ("network", 540, 650)):
        parts.append(
            f'<rect x="8" y="{top}" width="704" height="{bottom - top}" rx="6" fill="currentColor" '
            f'fill-opacity="0.05"/><g transform="translate(28 {(top + bottom) / 2}) rotate(-90)">'
            f"{text((0, 0), floor, kind='w')}</g>"
        )
    parts.append(
        '<rect x="42" y="322" width="658" height="320" rx="8" fill="none" stroke="currentColor" '
        'stroke-dasharray="5 4"/>'
    )
    boxes = {}
    for name, (file, column, top) in WALK.items():
        boxes.setdefault((columns[column], top), (file.split("/")[-1], []))[1].append(name)
    for (x, top), (file, names) in boxes.items():
        if names == ["GradientSteps.meta_gradient"]:  # its box is the dashed one
            parts += captions(x, top, *names, file)
        else:
            parts += box(x, top, ", ".join(names), file, 108 if x != middle else 44)
    parts += box(right, 26, "MetaGradient", "grads, loss, task_loss")

    there, back = (SUPPORT, "walk-s"), (QUERY, "walk-q")
    for x, start, end, (colour, head), label in (
        (left, 68, 104, there, "params, tasks"),
        (left, 146, 182, there, "θ, α, support, query"),
        (left, 224, 260, there, "the same, of a chunk of tasks"),
        (left, 302, 352, there, ""),
        (left, 394, 474, there, "φ_{0} = θ, α, support"),
        (right, 474, 224, back, ""),
        (right, 182, 68, back, "mean over all tasks"),
    ):
        parts.append(line((x, start), (x, end), colour, head))
        side, anchor = (9, "start") if x == left else (-9, "end")
        parts.append(text((x + side, (start + end) / 2 + 5), label, anchor, "l"))
    parts.append(text((right - 9, 439), "λ_{0} of each task", "end", "l"))
    parts.append(text((right - 9, 282), "mean over the chunk, (P,)", "end", "l"))
    for x, (colour, head), down, up in (
        (left, there, "φ_{s}", "∇L^{S}(φ_{s})"),
        (right, back, "α λ_{s+1}", "H_{s} (α λ_{s+1})"),
    ):
        parts.append(line((x - 24, 516), (x - 24, 590), colour, head))
        parts.append(line((x + 24, 590), (x + 24, 516), colour, head))
        parts.append(text((x - 32, 566), down, "end", "l"))
        parts.append(text((x + 32, 566), up, "start", "l"))
        parts.append(text((x, 566), "S ×", kind="l"))
    # From there to back: by the query rows, and by what was kept on the way.
    parts.append(line((left + 108, 495), (middle - 44, 495), *there))
    parts.append(text((298, 487), "φ_{S}", kind="l"))
    parts.append(text((298, 512), "query", kind="l"))
    parts.append(line((middle + 44, 495), (right - 108, 495), *back))
    parts.append(text((438, 487), "λ_{S}", kind="l"))
    parts.append(
        f'<path d="M{left + 86} 474 V454 H{right - 86} V474" fill="none" stroke="{SUPPORT}" '
        'stroke-width="1.6" marker-end="url(#walk-s)"/>'
    )
    parts.append(text((middle, 446), "trajectory", kind="l"))
    title = "The calls of a meta-gradient, and what they hand on"
    return svg(720, 658, title, "walk", parts)


FIGURES = {"chain.svg": chain, "plane.svg": plane, "walk.svg": walk}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")
