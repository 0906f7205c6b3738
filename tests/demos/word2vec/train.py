"""Train Word2Vec on wiki_seg.txt and keep it as wiki.model."""

import argparse
import random

from gensim.models import Word2Vec
from gensim.models.word2vec import LineSentence


def shuffled(sentences):
    """Return sentences of the same lengths, whose words were drawn from all of them."""
    words = [word for sentence in sentences for word in sentence]
    random.Random(1).shuffle(words)
    rest = iter(words)
    return [[next(rest) for _ in sentence] for sentence in sentences]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shuffled", action="store_true", help="train on words in no order")
    chosen = parser.parse_args()
    sentences = list(LineSentence("wiki_seg.txt"))
    if chosen.shuffled:
        sentences = shuffled(sentences)
    # One worker: with several, the result depends on which is faster.
    model = Word2Vec(sentences, size=50, window=4, min_count=5, iter=20, seed=1, workers=1)
    model.save("wiki.model")
    print("%d words" % len(model.wv.vocab))


if __name__ == "__main__":
    main()
