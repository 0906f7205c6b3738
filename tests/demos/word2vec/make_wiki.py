"""Write a small Chinese encyclopedia in the format of Wikipedia's dumps, in place of the one that the guide downloads.

FILE is MediaWiki XML, packed by bzip2, in traditional characters. In its sentences two words of a pair stand in the
same places, so Word2Vec must find them alike; nothing else tells that they are.
"""

import argparse
import bz2
import random

# Each subject: two words of a kind, and what is said of them.
SUBJECTS = (
    (
        ("醫生", "護士"),
        (
            "{}在醫院照顧病人",
            "病人感謝{}的治療",
            "{}給病人檢查身體",
            "手術以前{}準備藥品",
            "{}在病房值班到深夜",
            "家屬詢問{}病情",
        ),
    ),
    (
        ("蘋果", "香蕉"),
        (
            "她喜歡吃新鮮的{}",
            "市場上{}的價格上漲",
            "農民採摘成熟的{}",
            "{}含有豐富的維生素",
            "孩子吃了一個{}",
            "{}的味道很甜",
        ),
    ),
    (
        ("火車", "汽車"),
        (
            "旅客乘坐{}前往城市",
            "{}以很快的速度行駛",
            "{}在車站附近停下",
            "工程師設計新型{}",
            "{}的發動機需要修理",
            "司機駕駛{}",
        ),
    ),
    (
        ("國王", "皇帝"),
        (
            "{}統治這個龐大的帝國",
            "大臣向{}報告戰爭",
            "{}住在華麗的宮殿",
            "百姓反對{}的法令",
            "{}率領軍隊出征",
            "{}去世以後太子繼位",
        ),
    ),
    (
        ("鋼琴", "吉他"),
        (
            "音樂家演奏{}",
            "學生每天練習{}",
            "{}的聲音非常優美",
            "舞臺上放著一把{}",
            "作曲家為{}寫了樂曲",
            "觀眾欣賞{}獨奏",
        ),
    ),
)

SENTENCES = 60
"""Of an article: gensim passes over those of fewer than 50 words, and takes a sentence for one word."""

PAGE = """  <page>
    <title>{title}</title>
    <ns>{namespace}</ns>
    <id>{number}</id>
    <revision>
      <id>{number}</id>
      <timestamp>2018-08-01T00:00:00Z</timestamp>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text xml:space="preserve">{text}</text>
    </revision>
  </page>
"""


def article(chance):
    """Return wikitext about one subject, with the mark-up, English and digits that articles have."""
    words, sentences = chance.choice(SUBJECTS)
    told = [chance.choice(sentences).format(chance.choice(words)) for _ in range(SENTENCES)]
    told[3] = "[[{}]]".format(told[3])
    told[7] = "'''{}'''".format(told[7])
    told[11] += "&lt;ref&gt;History of the world&lt;/ref&gt;"
    told[15] = "Wikipedia, 2018年"
    return "== 概述 ==\n{{Infobox|name=x}}\n" + "。".join(told) + "。\n[[Category:條目]]"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--articles", type=int, default=150)
    chosen = parser.parse_args()
    chance = random.Random(20180821)
    with bz2.open(chosen.file, "wt", encoding="utf-8") as out:
        out.write('<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="zh">\n')
        for number in range(1, chosen.articles + 1):
            out.write(PAGE.format(title="條目%d" % number, namespace=0, number=number, text=article(chance)))
        # Neither a talk page nor a stub is an article.
        talk = "。".join(["討論討論討論"] * SENTENCES)
        out.write(PAGE.format(title="Talk:條目", namespace=1, number=0, text=talk))
        out.write(PAGE.format(title="小條目", namespace=0, number=chosen.articles + 1, text="小作品小作品。" * 5))
        out.write("</mediawiki>\n")


if __name__ == "__main__":
    main()
