"""The road of the data: from images to a score, and the one place where the truth enters."""

from drawing import arrow, box, document, labelled, line, text

TITLE = "From images to a score"
DESCRIPTION = (
    "Two lanes begin at the images. In one, train_supernet.py run trains one net, whose weights subnets share, and "
    "writes a checkpoint; eval_supernet.py run takes the checkpoint and the arch list, calibrates batch norms, walks "
    "the prefix tree and counts; the counts become the submission with its manifest, which verify, report and score "
    "read. In the other, pretrain.py truth trains single nets and writes truth.json, which enters at score, goes from "
    "there to the report, and nowhere else.")
LEFT, MIDDLE, LANE = 14, 182, 336  # the supernet's lane
RIGHT, SIDE, LANE_2 = 392, 489, 194  # the single nets' lane
TRUTH = 566  # where the truth goes down


def draw() -> str:
    """The figure as the text of an SVG file."""
    return document(TITLE, DESCRIPTION, 538, [
        labelled(LEFT, 12, 572, 38, "sheet", ("images: ImageNet's folders, or built-in data", "")),
        arrow((MIDDLE, 50), (MIDDLE, 78)), arrow((SIDE, 50), (SIDE, 78)),

        labelled(LEFT, 78, LANE, 60, "pale", ("train_supernet.py run", "code"),
                 ("one net, whose weights subnets share", "")),
        labelled(RIGHT, 78, LANE_2, 60, "single", ("pretrain.py truth", "code"), ("single nets, one by one", "")),
        arrow((94, 138), (94, 166)), arrow((SIDE, 138), (SIDE, 166), kind="truth_line"),

        labelled(LEFT, 166, 160, 38, "sheet", ("checkpoint", "")),
        labelled(190, 166, 160, 38, "sheet", ("arch list", "")),
        labelled(RIGHT, 166, LANE_2, 38, "sheet", ("truth.json", "code")),
        arrow((94, 204), (94, 232)), arrow((270, 204), (270, 232)),

        box(LEFT, 232, LANE, 112, "pale"), text(MIDDLE, 255, "eval_supernet.py run", "code"),
        *(labelled(x, 268, 92, 36, "paper", (words, ""))
          for x, words in ((24, "calibrate"), (136, "prefix tree"), (248, "count"))),
        arrow((116, 286), (136, 286)), arrow((228, 286), (248, 286)),
        text(MIDDLE, 328, "what subnets share is computed once"),
        arrow((66, 344), (66, 372)),

        labelled(LEFT, 372, 104, 38, "sheet", ("counts", "")), arrow((118, 391), (146, 391)),
        labelled(146, 372, 204, 38, "sheet", ("submission + manifest", "")),
        line((248, 410), (248, 422)), line((63, 422), (301, 422)),
        *(arrow((x, 422), (x, 438)) for x in (63, 182, 301)),

        *(labelled(x, 438, 98, 60, "pale", (name, "code"), (words, "")) for x, name, words in (
            (LEFT, "verify", "complete?"), (133, "report", "one page"), (252, "score", "how good?"))),
        arrow((252, 468), (231, 468)),
        arrow((TRUTH, 204), (TRUTH, 468), (350, 468), kind="truth_line"),
        *(text(546, y, words, "truth", "end") for y, words in (
            (292, "Their accuracies"), (312, "enter at the score"), (332, "and nowhere else."))),

        box(LEFT, 514, 16, 12, "pale", 3), text(36, 525, "program", "soft", "start"),
        box(130, 514, 16, 12, "sheet", 3), text(152, 525, "file", "soft", "start"),
    ])
