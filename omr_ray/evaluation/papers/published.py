"""Numbers as the papers print them, by table, column and row. They were measured on other models, images and people than ours."""

from __future__ import annotations

MEASURED = "measured on other models"

# OMR table 1: wins of 2706 votes, then score of each metric. Lower is better for LPIPS and rounds.
OMR_TABLE1: dict[str, dict[str, float]] = {
    "SD V-1.4": {"human": 190, "lpips": 0.43, "aesthetic": 2.1, "clip": 1.3, "blip": 0.17, "rounds": 8.4},
    "Dalle-3": {"human": 463, "lpips": 0.65, "aesthetic": 3.5, "clip": 2.7, "blip": 0.13, "rounds": 13.7},
    "Prompt-to-Prompt": {"human": 390, "lpips": 0.23, "aesthetic": 2.4, "clip": 3.7, "blip": 0.54, "rounds": 5.6},
    "Imagen": {"human": 362, "lpips": 0.37, "aesthetic": 2.9, "clip": 2.5, "blip": 0.22, "rounds": 7.1},
    "Muse": {"human": 340, "lpips": 0.39, "aesthetic": 3.3, "clip": 3.4, "blip": 0.21, "rounds": 12.3},
    "CogView 2": {"human": 264, "lpips": 0.47, "aesthetic": 3.2, "clip": 2.6, "blip": 0.13, "rounds": 7.2},
    "Ours": {"human": 508, "lpips": 0.15, "aesthetic": 3.1, "clip": 4.3, "blip": 0.59, "rounds": 3.4},
    "Ours_RC25": {"human": 477, "lpips": 0.56, "aesthetic": 3.3, "clip": 3.2, "blip": 0.49, "rounds": 8.9},
}
# OMR fig. 7, as the text gives it: win rates of "Ours" over 8 rounds.
OMR_FIG7 = {"CogView 2": 0.65, "Muse": 0.75}
# OMR table 2: accuracy of modality switching, per cent, of "Ours".
OMR_TABLE2_OURS = {
    "round 1": {"T->T": 89.9, "T->I": 88.7, "I+T->I": 96.1},
    "round 2": {"T->T": 91.6, "T->I": 92.1, "I+T->I": 95.1, "I+T->T": 94.7},
    "round 3": {"T->T": 90.9, "T->I": 89.9, "I+T->I": 94.3},
}
# TDRI table 1: CLIP and BLIP of text to image and image to image, and the share of human votes in per cent.
TDRI_TABLE1: dict[str, dict[str, float]] = {
    "GPT-3.5 augmentation": {"t2i_clip": 0.154, "t2i_blip": 0.146, "i2i_clip": 0.623, "i2i_blip": 0.634, "human": 5.0},
    "GPT-4 augmentation": {"t2i_clip": 0.162, "t2i_blip": 0.151, "i2i_clip": 0.647, "i2i_blip": 0.638, "human": 6.2},
    "LLaMA-2 augmentation": {"t2i_clip": 0.116, "t2i_blip": 0.133, "i2i_clip": 0.591, "i2i_blip": 0.570, "human": 6.1},
    "Yi-34B augmentation": {"t2i_clip": 0.103, "t2i_blip": 0.124, "i2i_clip": 0.586, "i2i_blip": 0.562, "human": 4.3},
    "TDRI-Reflection": {"t2i_clip": 0.281, "t2i_blip": 0.285, "i2i_clip": 0.753, "i2i_blip": 0.767, "human": 25.8},
    "TDRI-Reflection + ImageReward RL": {"t2i_clip": 0.297, "t2i_blip": 0.284, "i2i_clip": 0.786, "i2i_blip": 0.776, "human": 26.5},
    "TDRI (Ours)": {"t2i_clip": 0.338, "t2i_blip": 0.336, "i2i_clip": 0.812, "i2i_blip": 0.833, "human": 33.6},
}
# TDRI table 3, from its text: consistency, satisfaction in per cent, minutes.
TDRI_TABLE3 = {
    "edit": {"consistency": 0.88, "satisfaction": 90.0, "minutes": 9.0},
    "scratch": {"consistency": 0.75, "satisfaction": 78.0, "minutes": 12.0},
}
TDRI_TURNS = {
    2: {"satisfaction": 70.0, "clip": 0.72, "minutes": 6.0},
    4: {"satisfaction": 85.0, "clip": 0.78, "minutes": 9.0},
    6: {"satisfaction": 87.0, "clip": 0.80, "minutes": 11.0},
    8: {"satisfaction": 88.0, "clip": 0.81, "minutes": 12.0},
}
TDRI_TABLE4 = {"simple": {"success": 92.0, "clip": 0.85, "human": 87.0}, "complex": {"success": 65.0, "clip": 0.60, "human": 62.0}}
TDRI_TABLE5 = {
    "general": {"satisfaction": 83.0, "iterations": 5.0, "clip": 0.77},
    "per user": {"satisfaction": 90.0, "iterations": 8.0, "clip": 0.85},
}
# TDRI table 6: threshold -> share of generations in which Attend-and-Excite is used, and what it adds to the similarity, per cent.
TDRI_TABLE6 = {0.80: (0.0, 0.0), 0.75: (8.7, 0.23), 0.73: (31.3, 1.87), 0.70: (51.6, 2.36), 0.68: (72.5, 2.67), 0.66: (95.8, 1.3)}
TDRI_TABLE7 = {
    "7B": {"satisfaction": 90.0, "clip": 0.85, "minutes": 15.0},
    "5B": {"satisfaction": 85.0, "clip": 0.82, "minutes": 10.0},
    "3B": {"satisfaction": 78.0, "clip": 0.77, "minutes": 6.0},
}
TDRI_FIG11 = {5: 21.1}  # rounds used -> share of users, per cent: the one number that the text gives
