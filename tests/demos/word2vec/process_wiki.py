"""Turn a dump of Wikipedia into text: an article a line."""

import sys

from gensim.corpora import WikiCorpus


def main():
    dump, text = sys.argv[1:]
    corpus = WikiCorpus(dump, lemmatize=False, dictionary={}, processes=2)
    count = 0
    with open(text, "w", encoding="utf-8") as out:
        for words in corpus.get_texts():
            out.write(" ".join(words) + "\n")
            count += 1
    print("%d articles" % count)


if __name__ == "__main__":
    main()
