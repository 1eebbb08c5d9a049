"""Texts that tokenizers tend to get wrong, and a little corpus to train toy tokenizers on."""

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "It's 3.14 or so; don't ask why they've 12345 apples and 67 pears in 2024.",
    "def main(argv: list[str]) -> int:\n    return 0\n\n\nif __name__ == '__main__':\n    main([])",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好,我们去公园散步吧。机器学习是人工智能的一个分支。",
    "Ein schöner Tag für die Größe; naïve café déjà vu, señor. Добрый день, мир.",
    "this is a text with   many   spaces\tand tabs, \r\nand lines\n\n\nof all kinds.",
] * 3

TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello  world ",
    "   three spaces, then a tab\t and\n\nlines\r\n ",
    "It's 3.14, they've 12345678 and don't",
    "今天天气很好,机器学习。狐狸",
    "naïve café — “quotes” … 🙂👨‍👩‍👧 ﷽ ½ ²",
    "\u0001\u0002 control \u007f and \u200b zero width",
    "if x:\n\treturn x[0] == {'a': 1}\n",
    "▁already escaped▁",
    "Привет, мир! שלום",
    "a" * 200,
]
