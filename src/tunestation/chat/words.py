"""What the page says, in English and Chinese."""

from __future__ import annotations

ENGLISH = {
    "language": "English",
    "invitation": "Ask something.",
    "message": "Type a message, and press Enter",
    "empty": "Type a message first.",
    "new": "New conversation",
    "conversations": "Conversations",
    "export": "Export as training data",
    "nothing": "There is no answered conversation yet.",
    "compare": "Before and after: ask the untuned model as well",
    "tuned": "Tuned",
    "base": "Untuned",
    "better_base": "Untuned is better",
    "better_same": "No difference",
    "better_tuned": "Tuned is better",
    "votes": "Votes: tuned {tuned}, no difference {same}, untuned {base}",
    "settings": "Settings",
    "system": "System text",
    "system_info": "Comes before the conversation; may be empty.",
    "temperature": "Temperature",
    "temperature_info": "0 always takes the likeliest token.",
    "top_p": "Top-p",
    "top_p_info": "Smallest set of tokens with this share of probability.",
    "top_k": "Top-k",
    "top_k_info": "Likeliest tokens considered; 0 considers all.",
    "repetition_penalty": "Repetition penalty",
    "repetition_penalty_info": "Above 1 discourages repetition.",
    "max_new_tokens": "Longest answer",
    "max_new_tokens_info": "In tokens.",
    "no_answer": "(no answer)",
    "speed": "{tokens} tokens, {speed:.1f} a second",
    "waiting": "Waiting: {count} others ask as well.",
    "length": "Cut at its longest length; see Settings.",
    "cancelled": "Stopped.",
    "trimmed": "The conversation is long: the model no longer sees its oldest questions and answers ({count} left out).",
    "failed": "The model could not answer.",
    "busy": "Too many people are asking just now. Try again in a moment.",
}

CHINESE = {
    "language": "中文",
    "invitation": "请提问。",
    "message": "输入消息，按回车发送",
    "empty": "请先输入消息。",
    "new": "新对话",
    "conversations": "对话记录",
    "export": "导出为训练数据",
    "nothing": "还没有已回答的对话。",
    "compare": "前后对比：同时询问微调前的模型",
    "tuned": "微调后",
    "base": "微调前",
    "better_base": "微调前更好",
    "better_same": "差不多",
    "better_tuned": "微调后更好",
    "votes": "投票：微调后 {tuned}，差不多 {same}，微调前 {base}",
    "settings": "设置",
    "system": "系统提示",
    "system_info": "放在对话之前，可以为空。",
    "temperature": "温度",
    "temperature_info": "0 表示总是取概率最大的词元。",
    "top_p": "Top-p",
    "top_p_info": "累计概率达到该值的最小词元集合。",
    "top_k": "Top-k",
    "top_k_info": "只考虑概率最大的若干词元，0 表示全部。",
    "repetition_penalty": "重复惩罚",
    "repetition_penalty_info": "大于 1 时减少重复。",
    "max_new_tokens": "最大长度",
    "max_new_tokens_info": "以词元计。",
    "no_answer": "（没有回答）",
    "speed": "{tokens} 个词元，每秒 {speed:.1f} 个",
    "waiting": "排队中：还有 {count} 个提问。",
    "length": "已达到最大长度，可在设置中调整。",
    "cancelled": "已停止。",
    "trimmed": "对话较长：模型看不到最早的 {count} 轮了。",
    "failed": "模型无法回答。",
    "busy": "现在提问的人太多，请稍后再试。",
}

WORDS = {"en": ENGLISH, "zh": CHINESE}


def preferred(accept_language: str) -> str:
    """`zh` where a browser asks for Chinese before English, else `en`."""
    for wanted in accept_language.split(","):
        language = wanted.strip().lower()[:2]
        if language in WORDS:
            return language
    return "en"
