"""Print the words that wiki.model finds nearest to each given one, as the guide's test.ipynb: WORD NEAR SIMILARITY."""

import sys

from gensim.models import Word2Vec


def main():
    model = Word2Vec.load("wiki.model")
    for word in sys.argv[1:]:
        for near, similarity in model.wv.most_similar(word, topn=5):
            print("%s %s %.4f" % (word, near, similarity))


if __name__ == "__main__":
    main()
