"""The tasks in scripts without spaces: attributes, searches, copies and behavioural tests."""

import numpy as np

from gpt2.evaluation.behavioural_tests import typo
from gpt2.tasks.recommendation.catalogue import attributes, named_in
from gpt2.tasks.support.predictor import withheld
from gpt2.tasks.support.report import marked
from gpt2.tasks.support.retriever import BM25, tf_idf

ANSWERS = [
    "请检查打印机的电源线是否插好。",
    "密码可以在登录页面重新设置。",
    "退款会在五个工作日内到账。",
    "电脑没有声音时请看音量。",
]


def test_attributes_are_parts_between_chinese_commas_too():
    found = attributes(["类型：科幻动作片、喜剧", "喜剧，ドキュメンタリー", "科幻动作片; ドキュメンタリー"])
    assert [sorted(each.values()) for each in found] == [
        ["喜剧", "类型：科幻动作片"], ["ドキュメンタリー", "喜剧"], ["ドキュメンタリー", "科幻动作片"]
    ]  # fmt: skip
    known = {name for each in found for name in each}
    assert named_in("这是一部很好看的科幻动作片。", known) == {tuple("科幻动作片")}


def test_searches_find_the_answer_that_shares_a_word():
    questions = ["我的打印机不工作了", "怎么重新设置密码", "退款什么时候到账", "没有声音"]
    for scores in (BM25(ANSWERS).scores(questions), tf_idf(ANSWERS, questions)):
        assert scores.argmax(1).tolist() == [0, 1, 2, 3]


def test_a_reply_that_copies_another_answer_is_withheld():
    question, own = "怎么重新设置密码", ANSWERS[1]
    assert withheld("密码可以在登录页面设置。", True, question, own, ANSWERS) == ""
    copied = "密码会在五个工作日内到账。"
    assert withheld(copied, True, question, own, ANSWERS) == "it copies another answer"
    assert withheld("好。", True, question, own, ANSWERS) == "it is too short"


def test_changes_of_a_question_fit_its_script():
    assert marked("怎么退款？") == "怎么退款" and marked("怎么退款。") == "怎么退款？"
    assert marked("How so?") == "How so" and marked("Tell me.") == "Tell me?"
    for text in ("打印机不工作了怎么办", "เครื่องพิมพ์ไม่ทำงาน", "プリンターが動かない"):
        assert typo(text, np.random.default_rng(0)) == text
    assert "打印机" in typo("打印机printer不工作", np.random.default_rng(0))
