"""What is said without a picture: courtesies, as people type them, and questions that the tiny model cannot answer."""

import random

from builder.tiny_model.skills import Ask, Language

TALK: dict[Language, tuple[tuple[tuple[str, ...], str], ...]] = {
    "en": (
        (("Who are you?", "What are you?", "who are you", "What is your name?"),
         "I am a tiny vision model. I know simple shapes, colors and numbers."),
        (("Hello!", "Hi", "Hello", "Good morning!"), "Hello! Show me a picture."),
        (("What can you do?", "Help", "How can you help me?"),
         "I can describe pictures, count objects, read numbers, find boxes and say what moves."),
        (("Thank you!", "Thanks", "Thank you very much."), "You are welcome."),
        (("Goodbye!", "Bye", "See you!"), "Goodbye!"),
        (("How are you?", "How are you today?"), "I am fine, thank you."),
    ),
    "zh": (
        (("你是谁？", "你叫什么名字？", "你是谁", "介绍一下你自己。"),
         "我是一个很小的视觉模型，认识简单的形状、颜色和数字。"),
        (("你好！", "你好", "早上好！", "您好"), "你好！给我看一张图片吧。"),
        (("你会做什么？", "你能做什么？", "怎么用你？"), "我会描述图片、数物体、读数字、找边界框，还会说什么在动。"),
        (("谢谢！", "谢谢你。", "多谢"), "不客气。"),
        (("再见！", "再见", "拜拜"), "再见！"),
        (("你好吗？", "你今天怎么样？"), "我很好，谢谢。"),
    ),
}  # fmt: skip


def talk(language: Language, rng: random.Random) -> Ask:
    """The tokenizer's corpus has these: `TALK` stands still, what is new goes into `MORE_TALK`."""
    questions, answer = rng.choice(TALK[language])
    return Ask("talk", language, rng.choice(questions), answer)


MORE_TALK: dict[Language, tuple[tuple[str, ...], ...]] = {  # more wordings, in the order of `TALK`
    "en": (
        ("Who are you", "what is this", "Introduce yourself", "Tell me about yourself.", "Which model are you?",
         "what model is this", "are you GPT", "Are you Qwen?"),
        ("Hey", "Hi there", "Hello there!", "Hello, world", "Good evening", "Good afternoon", "Greetings", "ping",
         "test", "Testing", "Hey there", "hello hello", "yo", "Hi, how is it going"),
        ("What can you do for me?", "help me", "How do I use you?", "What do you know?", "How does this work?",
         "What should I ask you?"),
        ("Thanks a lot", "thx", "many thanks", "Great, thanks", "OK, thank you"),
        ("Good night", "see you later", "bye bye"),
        ("how is it going", "How do you do?", "are you ok"),
    ),
    "zh": (
        ("你是什么模型？", "请介绍一下自己", "你是哪个模型"),
        ("嗨", "哈喽", "大家好", "晚上好", "在吗", "你好呀", "测试"),
        ("帮助", "你可以做什么", "我可以问什么？", "能帮我做什么"),
        ("谢谢", "非常感谢", "太好了，谢谢"),
        ("晚安", "回头见", "下次见"),
        ("你还好吗", "最近怎么样"),
    ),
}  # fmt: skip
OFF_TOPIC: dict[Language, tuple[tuple[str, ...], str]] = {
    "en": (
        ("Tell me a joke", "What is {} + {}?", "Write a poem about the {}", "What is the capital of {}?", "Why is {}?",
         "Translate {} into {}", "Write a {} in {}", "What time is it?", "How is the weather in {}?", "Explain {}",
         "Give me a list of {}", "Say {}", "Summarize this text: {} {} {}", "Who is {}?", "Can you {}", "I like {}",
         "{}", "{} {}", "{} {} {}?", "I want to {}", "Is it {}?", "{} or {}?", "Repeat the word {}"),
        "I only know pictures with simple shapes and numbers.",
    ),
    "zh": (
        ("讲个笑话", "{}加{}等于几？", "写一首关于{}的诗", "{}的首都是哪里？", "为什么{}？", "把{}翻译成{}",
         "现在几点？", "今天{}天气怎么样？", "解释一下{}", "我喜欢{}", "谁是{}？", "{}是什么意思", "我想{}",
         "请重复{}"),
        "我只认识有简单形状和数字的图片。",
    ),
}  # fmt: skip
_WORDS: dict[Language, tuple[str, ...]] = {
    "en": ("2", "17", "45", "sea", "France", "Python", "love", "function", "story", "music", "rain", "moon", "dinner",
           "money", "play a song", "the weather", "a letter", "go home", "computer", "English", "Berlin", "happy",
           "quantum physics", "cats", "sum", "cook rice", "football", "today", "history", "my mother", "work"),
    "zh": ("三", "七", "春天", "法国", "英文", "爱", "音乐", "下雨", "月亮", "吃饭", "北京",
           "电脑", "唱歌", "历史", "妈妈", "足球"),
}  # fmt: skip
_SAME_WITHOUT_CASE = (str, str, str.lower, str.lower, str.upper, str.capitalize)


def small_talk(language: Language, rng: random.Random) -> Ask:
    """Courtesies and questions that it cannot answer, as people type them: in any case, with any ending."""
    if rng.random() < 0.3:
        forms, answer = OFF_TOPIC[language]
        form = rng.choice(forms)
        question = form.format(*(rng.choice(_WORDS[language]) for _ in range(form.count("{}"))))
    else:
        index = rng.randrange(len(TALK[language]))
        questions, answer = TALK[language][index]
        question = rng.choice((*questions, *MORE_TALK[language][index]))
    return Ask("talk", language, _as_typed(question, language, rng), answer)


def _as_typed(question: str, language: Language, rng: random.Random) -> str:
    ends = ("", "", "!", ".", "?") if language == "en" else ("", "", "！", "。", "？")
    if rng.random() < 0.5:
        question = question.rstrip(".!?。！？") + rng.choice(ends)
    return rng.choice(_SAME_WITHOUT_CASE)(question)
