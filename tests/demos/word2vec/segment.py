"""Cut the articles of wiki.zhs.text into words; wiki_seg.txt gets them without English and digits."""

import logging
import re

import jieba

CHINESE = re.compile("^[\u4e00-\u9fff]+$")


def main():
    jieba.setLogLevel(logging.WARNING)
    with open("wiki.zhs.text", encoding="utf-8") as articles, open("wiki_seg.txt", "w", encoding="utf-8") as out:
        for article in articles:
            for sentence in article.split():
                words = [word for word in jieba.cut(sentence) if CHINESE.match(word)]
                if words:
                    out.write(" ".join(words) + "\n")


if __name__ == "__main__":
    main()
