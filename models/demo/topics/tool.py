"""Questions about the flashnorm command, MLX, quantisation, supported models and language models at large."""

from __future__ import annotations

from topics.language import Dice, Item, Talk, Turn, define, discuss


def command(name: str, *others: str) -> tuple[str, ...]:
    """The many ways to ask what a command of the tool does."""
    forms = (f"flashnorm {name}", f"`flashnorm {name}`", f"the {name} command")
    patterns = [ask for form in forms for ask in (
        f"What does {form} do?", f"What is {form}[| for]?", f"How do I use {form}?", f"[Explain|Describe] {form}[|.]", f"When do I [use|need] {form}?", f"Tell me about {form}[|.]")]
    return (*patterns, f"What does {name} do?", f"{name}?", f"What is {name}?", *others)


COMMANDS = (
    Item(command("chat", "How do I [chat|talk] with a model?", "How [do|can] I start a chat?", "How do I open a chat?"),
         "flashnorm chat opens a conversation with a model in your terminal. Run: flashnorm chat --model PATH", "It opens a chat in the terminal."),
    Item(command("generate", "How do I generate text?", "How do I run one prompt?", "How can I get one answer?"),
         "flashnorm generate answers one prompt and stops. Run: flashnorm generate --model PATH --prompt TEXT", "It answers one prompt."),
    Item(command("convert", "How do I convert a model?", "How can I convert my model?", "How do I fold a model?", "How do I quantise a model?", "How do I make a folded model?"),
         "flashnorm convert reads a model, folds its gains, quantises its weights if you like, and saves the result.", "It folds, quantises and saves a model.",
         "By default it quantises to four bits in groups of 64. The original files are not changed."),
    Item(command("bench", "How do I measure the speed?", "How can I measure speed?", "How do I run a benchmark?", "How fast is my model?", "How do I compare the speed?"),
         "flashnorm bench measures how fast a model reads and writes tokens, with FlashNorm, with plain norms and without norms.", "It measures speed.",
         "It repeats each measurement and reports the mean and the spread, so that you can see the noise."),
    Item(command("verify", "How do I check a model?", "How can I check that a model is right?", "How do I test a converted model?", "How do I know that the result is correct?"),
         "flashnorm verify compares a folded model with the original one and shows how far their outputs differ.", "It compares a folded model with the original.",
         "The difference should be no larger than the rounding of the number format."),
    Item(command("info", "How do I see the details of a model?", "How do I see which kernels are used?", "Which device is used?"),
         "flashnorm info shows a model's size, its norms, the device, and which kernels were chosen.", "It shows a model's details."),
    Item(command("serve", "How do I start a server?", "Is there a server?", "Can I use it over HTTP?"),
         "flashnorm serve starts an HTTP server, so that other programs can use the model.", "It starts an HTTP server."),
    Item(command("timing", "What is the timing model?", "How long should a token take?"),
         "flashnorm timing shows the timing model of the paper: how long each step should take.", "It shows the timing model."),
    Item(("Which commands are there?", "What commands do you [have|know]?", "List the commands[|.]", "What can the tool do?", "How do I use flashnorm?", "What can flashnorm do?", "Which commands does flashnorm have?", "How do I use this tool?",
          "What are the commands?"),
         "The commands are chat, generate, convert, bench, verify, serve, info and timing.", "Chat, generate, convert, bench, verify, serve, info, timing."),
    Item(("How do I install [flashnorm|it|this tool]?", "How can I install [flashnorm|this]?", "What do I need to install?", "How do I get started?", "Where do I start?", "How do I begin?"),
         "Install the package with pip, then run flashnorm chat to talk to a model.", "With pip. Then run flashnorm chat."),
)
ITEMS = (
    Item(define("MLX") + ("What does MLX do?", "Who makes MLX?", "Why MLX?", "What is MLX for?", "Why do you use MLX?"),
         "MLX is an array library for machine learning, made by Apple. It runs on Apple silicon, and on Linux too.", "An array library for machine learning by Apple.",
         "On Apple silicon the CPU and the GPU share one memory, and MLX makes use of that."),
    Item(define("mlx-lm") + ("What does mlx-lm do?", "Do you work with mlx-lm?", "Can I use mlx-lm?", "Does it work with mlx-lm?"),
         "mlx-lm runs language models on MLX. The models of this engine keep its interface, so its tools work here too.", "A package that runs language models on MLX."),
    Item(("Which models are supported?", "What models [are supported|can I use|do you support|work]?", "Which models can I [run|use|convert]?", "Does it support [Llama|Qwen3|Mistral|SmolLM2|Gemma]?", "Is [Llama|Mistral|Qwen3|SmolLM2] supported?",
          "Can I [run|use] [Llama|Mistral|Qwen3|SmolLM2]?", "Which architectures are supported?", "Does FlashNorm work with [Llama|Qwen3|Mistral|SmolLM2]?", "List the supported models[|.]"),
         "Llama, Mistral, SmolLM2, Qwen3 and their relatives are supported.", "Llama, Mistral, SmolLM2, Qwen3 and relatives.", "Their norms stand before linear layers, so the gains can be folded."),
    Item(("Which [devices|machines|computers] are supported?", "Where does [it|flashnorm] run?", "Does it run on [Linux|a Mac|CUDA|a GPU|a CPU]?", "Do I need a [GPU|Mac]?", "Can I use [CUDA|a GPU|a CPU|Linux]?", "What hardware do I need?",
          "Does [it|flashnorm] work on [Linux|Windows|a Mac]?"),
         "It is made for Apple silicon first. It also runs on Linux, on the CPU or with CUDA.", "Apple silicon first, Linux with CPU or CUDA too."),
    Item(define("quantisation") + define("quantization") + ("How does quantisation work?", "What does quantising do?", "Why quantise[| a model]?", "What does quantised mean?", "What is a quantised model?"),
         "Quantisation stores weights with few bits, for example four, together with a scale for each group. The model becomes smaller and faster to read.", "Storing weights with few bits.",
         "With four bits and groups of 64, a model needs a bit more than a quarter of its size in bf16. Some accuracy is lost."),
    Item(define("4-bit quantisation") + ("What does 4-bit mean?", "What are 4 bits?", "What does four bits mean?", "How small is a 4-bit model?", "How many values do four bits have?"),
         "With 4 bits each weight takes one of 16 values, and every group of weights has its own scale and offset.", "Each weight takes one of 16 values."),
    Item(define("the group size") + ("What is a group?", "Why groups of 64?", "Which group size should I use?", "What is a good group size?"),
         "The group size says how many weights share one scale. The usual group size is 64.", "How many weights share one scale."),
    Item(define("bf16") + define("bfloat16") + ("Why bf16?", "What does bf16 mean?", "How many bits does bf16 have?", "How is bf16 different from float32?"),
         "bf16 is a number format with 16 bits: the range of float32, but fewer digits.", "A 16-bit number format.", "A weight in bf16 takes two bytes, half of float32."),
    Item(define("float32") + ("How many bits does float32 have?", "Why float32?", "How many bytes does float32 take?"), "float32 is a number format with 32 bits, or four bytes. Gains are folded in float32 to avoid rounding errors.", "A 32-bit number format."),
    Item(define("fp16") + define("float16") + ("Why can fp16 overflow?", "How large can fp16 be?", "What is the problem with fp16?"),
         "fp16 is a number format with 16 bits. Its largest number is 65504, so large products can overflow.", "A 16-bit number format that can overflow."),
    Item(define("a token") + ("What are tokens?", "How long is a token?", "What is a tokenizer?", "What does a tokenizer do?"),
         "A token is a piece of text, often a word or a part of a word. A model reads and writes tokens.", "A piece of text.", "A tokenizer cuts the text into tokens and gives each a number."),
    Item(define("a language model") + define("an LLM") + ("How does a language model work?", "How do language models work?", "What does a language model do?", "How do you work?", "How do you choose words?"),
         "A language model reads tokens and predicts the next one, again and again.", "A program that predicts the next token."),
    Item(define("a transformer") + ("How does a transformer work?", "What are the parts of a transformer?", "What is inside a transformer?"),
         "A transformer is a model made of blocks. Each block has attention, then a small network, with a norm before each.", "A model made of attention blocks."),
    Item(define("attention") + ("How does attention work?", "What does attention do?", "Why does a model need attention?"),
         "Attention lets each token look at earlier tokens and take from them what it needs.", "It lets tokens look at earlier tokens."),
    Item(define("an embedding") + define("a weight") + ("What are weights?", "What are embeddings?", "What is a parameter?", "What are parameters?"),
         "Weights are the numbers that a model has learned. An embedding is the list of weights that stands for one token.", "Numbers that a model has learned."),
    Item(define("the KV cache") + define("a KV cache") + ("Why is there a cache?", "What is the cache for?", "What does the cache do?", "What is stored in the cache?"),
         "The KV cache keeps the keys and values of earlier tokens, so that they need not be computed again.", "It keeps keys and values of earlier tokens."),
    Item(define("decoding") + define("prefill") + ("What is the difference between prefill and decode?", "What does decode mean?", "Which part is slow?", "What is decode?"),
         "Prefill reads the whole prompt at once. Decoding writes one token after the other.", "Prefill reads, decoding writes.", "Decoding mostly waits for memory, because every weight is read for each token."),
    Item(define("a checkpoint") + define("safetensors") + ("Where are the weights stored?", "Which files does a model have?", "What is in a model folder?", "What is config.json?"),
         "A checkpoint is a folder with a model's weights in safetensors files, its config and its tokenizer.", "A folder with a model's files."),
    Item(define("perplexity") + ("How is perplexity measured?", "What is a good perplexity?", "What does perplexity say?", "What is a low perplexity?"),
         "Perplexity says how surprised a model is by a text. Lower is better, and one is perfect.", "How surprised a model is. Lower is better."),
    Item(define("a tensor") + define("a vector") + define("a matrix") + ("What is a matrix product?", "What is a linear layer?", "What are tensors?"),
         "A vector is a list of numbers and a matrix is a table of numbers. A tensor is the word for both and for larger ones.", "A list or table of numbers."),
    Item(define("an MLP") + define("SwiGLU") + ("What are gate and up?", "What does the MLP do?", "What is the gate projection?"),
         "The MLP is the small network in each block. It multiplies a gate with an up projection, and projects the result down.", "The small network in each block."),
    Item(define("training") + define("a GPU") + ("How is a model trained?", "What is a graphics card?", "What does a GPU do?", "How do models learn?"),
         "A model is trained on many texts: its weights change a little at each step. A GPU does the many sums at once.", "Learning weights step by step, often on a GPU."),
    Item(define("a system prompt") + ("What is a prompt?", "How do I change your style?", "Can I change how you [talk|answer]?", "Can you talk like a pirate?", "How do I make you answer briefly?"),
         "A system prompt says how I should answer. Try: Answer briefly. Or: You are a pirate.", "It says how I should answer."),
)


def tool(dice: Dice, talk: Talk) -> list[Turn]:
    return discuss(dice, COMMANDS if dice.chance(0.4) else ITEMS)
