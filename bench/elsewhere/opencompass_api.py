"""OpenCompass asks a running `invoke serve quickstart` for sums (docs/serving.md). Put another data set, name and address in for yours."""

from opencompass.datasets import CustomDataset
from opencompass.models import OpenAISDK
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever

datasets = [
    {
        "abbr": "sums",
        "type": CustomDataset,
        "path": "bench/elsewhere/sums.jsonl",
        "reader_cfg": {"input_columns": ["question"], "output_column": "answer"},
        "infer_cfg": {
            "prompt_template": {"type": PromptTemplate, "template": {"round": [{"role": "HUMAN", "prompt": "{question}"}]}},
            "retriever": {"type": ZeroRetriever},
            "inferencer": {"type": GenInferencer},
        },
        "eval_cfg": {"evaluator": {"type": AccEvaluator}, "pred_role": "BOT"},
    }
]
roles = {"round": [{"role": "HUMAN", "api_role": "HUMAN"}, {"role": "BOT", "api_role": "BOT", "generate": True}]}
models = [
    {
        "abbr": "tuned",
        "type": OpenAISDK,
        "path": "quickstart",
        "key": "none",  # with --public: the password
        "openai_api_base": "http://127.0.0.1:8000/v1",
        "tokenizer_path": "src/tunestation/starter/model",  # or the merged folder; it counts tokens
        "meta_template": roles,
        "query_per_second": 8,
        "max_out_len": 40,
        "max_seq_len": 2048,
        "batch_size": 8,
    }
]
