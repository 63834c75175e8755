"""What FlashNorm is and why it is exact: norms, gains, folding, deferring, rounding."""

from __future__ import annotations

from topics.language import Dice, Item, Talk, Turn, define, discuss

ITEMS = (
    Item(
        define("FlashNorm") * 2
        + (
            "What is Flash Norm?",
            "What is this [tool|engine|project] about?",
            "[Explain|What is] the main idea[| of FlashNorm]?",
            "How does FlashNorm work?",
            "What does FlashNorm do?",
        ),
        "FlashNorm is an exact way to run RMSNorm and the linear layer after it faster. It folds the gains into the weights and defers the scale.",
        "An exact, faster way to run RMSNorm followed by a linear layer.",
        "The gain of the norm moves into the next weights once, before the model runs. The scale 1/RMS moves behind the product. The result stays the same.",
    ),
    Item(
        define("RMSNorm")
        + (
            "How is RMSNorm computed?",
            "What is the formula of RMSNorm?",
            "What does RMSNorm do?",
            "What is root mean square normalisation?",
            "How does RMSNorm work?",
        ),
        "RMSNorm divides a vector by its root mean square and multiplies each entry by a gain: y = a / RMS(a) * g.",
        "y = a / RMS(a) * g.",
        "It keeps the size of the activations steady from layer to layer, so that training does not explode.",
    ),
    Item(
        define("the RMS")
        + define("the root mean square")
        + ("How [is|do you compute] the RMS?", "What does RMS stand for?", "What does RMS mean?"),
        "RMS means root mean square: square the entries, take their mean, and take the square root.",
        "The square root of the mean of the squares.",
        "A small number epsilon is added under the root, so that we never divide by zero.",
    ),
    Item(
        define("LayerNorm")
        + (
            "How is LayerNorm different from RMSNorm?",
            "What is the difference between LayerNorm and RMSNorm?",
            "Is RMSNorm the same as LayerNorm?",
        ),
        "LayerNorm also subtracts the mean and may add a bias. RMSNorm only divides by the root mean square.",
        "LayerNorm also subtracts the mean.",
        "Where the mean is folded into the weights before it, LayerNorm becomes RMSNorm.",
    ),
    Item(
        define("a norm")
        + define("normalisation")
        + ("What do norms do?", "Why do models have norms?", "Why do we need norms?", "What is a norm good for?"),
        "A norm keeps the activations of a model at a steady size, so that deep models can be trained.",
        "It keeps activations at a steady size.",
    ),
    Item(
        define("a gain")
        + define("the gain")
        + ("What are [the |]gains?", "What is the weight of a norm?", "What is g in RMSNorm?", "What is a norm gain?"),
        "A gain is the learned weight of a norm: one number for each entry of the vector.",
        "The learned weight of a norm.",
        "Because the next layer is linear, the gain can be multiplied into its weights once and for all.",
    ),
    Item(
        define("folding")
        + define("gain folding")
        + (
            "What does [folding|it mean to fold] [the gains|a gain]?",
            "How [do you fold|are] the gains[| folded]?",
            "What does fold mean?",
            "How does folding work?",
            "What is the fold step?",
        ),
        "Folding multiplies the gain of a norm into the weights after it: W* = diag(g) W. Then the norm has no gain left.",
        "Multiplying the gain into the next weights.",
        "It is done once, in float32, before the weights are quantised. Every layer that reads the norm must be folded.",
    ),
    Item(
        (
            "Why fold the gains?",
            "Why do [we|you] fold the gains?",
            "Why fold[| gains]?",
            "What is the [use|point|benefit] of folding[| the gains]?",
            "Why should I fold the gains?",
            "What do we gain by folding?",
            "Why is folding good?",
        ),
        "Folding removes one multiplication for each entry and one weight from every norm, and the result stays the same.",
        "It removes work and keeps the result.",
        "And without a gain, the norm is only a scale, which can wait until after the product.",
    ),
    Item(
        define("deferring")
        + define("deferred normalisation")
        + (
            "What does it mean to defer the [scale|norm]?",
            "Why defer the scale?",
            "How does deferring work?",
            "What is the deferred scale?",
            "Why do you defer the norm?",
        ),
        "Deferring applies the scale 1/RMS after the matrix product instead of before it: (a / RMS(a)) W = (a W) / RMS(a).",
        "Applying 1/RMS after the product.",
        "Then the product need not wait for the norm. The sum of squares and the product are computed side by side.",
    ),
    Item(
        (
            "Why does 1/RMS commute with the product?",
            "Why can the scale move behind the product?",
            "Why can [we|you] defer the scale?",
            "Why is deferring [exact|correct|allowed]?",
            "Why does the scale commute[| with the product]?",
            "Why can 1/RMS be applied later?",
            "Why is the order of the scale and the product free?",
            "How can the norm come after the product?",
        ),
        "Because 1/RMS is one number for the whole vector, and a matrix product is linear. Scaling before or after gives the same result.",
        "It is one number, and the product is linear.",
        "In formulas: (s a) W = s (a W) for any number s.",
    ),
    Item(
        (
            "Is FlashNorm exact?",
            "Does FlashNorm change the [result|output|answers|model]?",
            "Is FlashNorm an approximation?",
            "Does folding change the [result|output|model]?",
            "Is the result the same?",
            "Do I lose quality[| with FlashNorm]?",
            "Does FlashNorm [hurt|reduce] [quality|accuracy]?",
            "Is the output of FlashNorm the same?",
        ),
        "Yes, FlashNorm is exact: the formula stays the same. Only the rounding can differ a little.",
        "It is exact, up to rounding.",
        "You can check it yourself with flashnorm verify.",
    ),
    Item(
        (
            "Is FlashNorm faster?",
            "How much faster is FlashNorm?",
            "What is the speedup[| of FlashNorm]?",
            "Does FlashNorm make [models|it|decoding] faster?",
            "How fast is FlashNorm?",
            "How fast is it?",
            "Is it [fast|faster]?",
            "Why is FlashNorm fast?",
            "Why use FlashNorm?",
            "What is FlashNorm good for?",
            "What are the benefits of FlashNorm?",
        ),
        "FlashNorm takes the norm off the path of the token. How much that helps depends on the machine, so measure it with flashnorm bench.",
        "That depends on the machine: measure it with flashnorm bench.",
        "It pays only inside one kernel. Done as separate operations, deferring the scale is slower.",
    ),
    Item(
        (
            "Who [invented|made|wrote] FlashNorm?",
            "Where does FlashNorm come from?",
            "Is there a paper about FlashNorm?",
            "Which paper describes FlashNorm?",
            "Where can I read about FlashNorm?",
            "What is the FlashNorm paper?",
            "Give me the FlashNorm paper.",
        ),
        "FlashNorm comes from the paper with the number arXiv 2407.09577.",
        "From arXiv 2407.09577.",
    ),
    Item(
        define("a post-norm")
        + (
            "Why is a post-norm special?",
            "Why can a post-norm not be folded?",
            "What is special about a post-norm?",
            "Can you fold a post-norm?",
            "Where does a post-norm stand?",
            "Why are post-norms different?",
        ),
        "A post-norm stands after a layer and feeds only the residual sum. No linear layer reads it alone, so its gain cannot be folded into one.",
        "It feeds only the residual sum, so its gain cannot be folded.",
        "Gemma 2 and Gemma 3 have post-norms. The reader of the residual can apply them.",
    ),
    Item(
        define("a pre-norm")
        + (
            "Where does a pre-norm stand?",
            "What is the difference between [a |]pre-norm and [a |]post-norm?",
            "Why are pre-norms easy?",
        ),
        "A pre-norm stands before a layer. Its gain can be folded into that layer's weights.",
        "A norm before a layer.",
    ),
    Item(
        define("QK-norm")
        + define("a QK-norm")
        + (
            "Which norm do queries and keys have?",
            "What does QK-norm do?",
            "What happens to a QK-norm?",
            "Can you fold a QK-norm?",
        ),
        "A QK-norm normalises the queries and keys of attention. Its gain goes into the cosine and sine tables of RoPE.",
        "A norm on queries and keys.",
        "After a QK-norm the scale before it cancels, so queries and keys do not need it. The values still do.",
    ),
    Item(
        (
            "When does a scale cancel?",
            "What is cancelling?",
            "What does it mean that the scale cancels?",
            "Why does the first scale cancel?",
            "When can a norm be dropped?",
            "What happens with two norms in a row?",
        ),
        "When a second norm follows a product without bias, the scale of the first norm cancels, because the second norm removes any scale.",
        "When a second norm follows a bias-free product.",
        "Only the epsilon inside the norm must be adjusted, so that the result stays exact.",
    ),
    Item(
        define("epsilon")
        + ("What does epsilon do?", "Why is there an epsilon[| in the norm]?", "What is eps?", "Why add epsilon?"),
        "Epsilon is a tiny number under the root of a norm. It keeps us from dividing by zero.",
        "A tiny number against division by zero.",
    ),
    Item(
        define("RoPE")
        + (
            "How does RoPE work?",
            "What does RoPE do?",
            "What are rotary embeddings?",
            "Why does a model need RoPE?",
            "What does RoPE stand for?",
        ),
        "RoPE tells the model where a token stands by turning its queries and keys by an angle.",
        "It turns queries and keys by their position.",
        "FlashNorm can put the scale and the gain of a QK-norm into the tables of RoPE.",
    ),
    Item(
        (
            "What happens if a layer has a bias?",
            "Can you defer past a bias?",
            "What about [biases|a bias]?",
            "Does FlashNorm work with biases?",
            "Where does the scale go with a bias?",
            "How does FlashNorm handle a bias?",
        ),
        "The scale must be applied before the bias is added. A bias must not be scaled.",
        "Scale first, then add the bias.",
        "Qwen2 has biases on its queries, keys and values, so the order matters there.",
    ),
    Item(
        (
            "Why fold before quantising?",
            "When should [I|we|you] fold?",
            "Can [I|you|we] fold a quantised model?",
            "Why not fold after quantising?",
            "Does folding come before quantisation?",
            "What about models that are already quantised?",
        ),
        "Fold in float32 before quantising. A model that is already quantised cannot be folded exactly, so its gain stays.",
        "Fold first, in float32.",
        "Its gain is multiplied in while the kernel reads the activations. The scale can still be deferred.",
    ),
    Item(
        (
            "What about the last norm?",
            "Can you fold the final norm?",
            "What is special about a tied head?",
            "What are tied embeddings?",
            "What is a tied head?",
            "Why can a tied head not absorb the gain?",
            "What happens to the final norm?",
        ),
        "A tied head shares its weights with the embedding, so it cannot absorb the gain of the final norm. Only the scale is deferred there.",
        "A tied head shares weights with the embedding.",
        "If the gain were folded in, the embedding would change too, and the model would be wrong.",
    ),
    Item(
        define("the residual")
        + define("the residual stream")
        + ("What is a residual connection?", "What does the residual do?"),
        "The residual is the vector that runs through all layers. Each layer reads it through a norm and adds its result.",
        "The vector that runs through all layers.",
    ),
    Item(
        (
            "What is the difference between folding and deferring?",
            "Is folding the same as deferring?",
            "How [do|are] folding and deferring differ[|ent]?",
            "[Compare|What are] folding and deferring[|.]",
        ),
        "Folding moves the gain into the weights, once and before the model runs. Deferring moves the scale behind the product, for each token.",
        "Folding moves the gain, deferring moves the scale.",
    ),
    Item(
        (
            "What are the four ideas of FlashNorm?",
            "Which steps does FlashNorm have?",
            "What are the steps of FlashNorm?",
            "List the steps[| of FlashNorm].",
            "Name the four steps.",
            "Which tricks does FlashNorm use?",
        ),
        "There are four: fold the gain, defer the scale, fuse both into one kernel, and cancel a scale before a second norm.",
        "Fold, defer, fuse, cancel.",
    ),
    Item(
        define("a kernel")
        + define("a fused kernel")
        + (
            "Why one kernel?",
            "Why fuse the norm and the product?",
            "What does fuse mean?",
            "What is fusing?",
            "What is fusion?",
        ),
        "A kernel is a program that runs on the GPU. A fused kernel does several steps in one launch.",
        "A program on the GPU.",
        "A kernel that multiplies must read the whole vector anyway, so it can sum the squares at the same time. Then the norm is free.",
    ),
    Item(
        define("the upper bound")
        + (
            "What is the no-norm model?",
            "What are the three arms?",
            "Which arms are there?",
            "What is an arm?",
            "What is the baseline?",
            "What does none mean?",
            "What is the no-norm bound?",
        ),
        "There are three arms: baseline with plain norms, flashnorm, and none without norms. None gives wrong text but shows the highest speed.",
        "Baseline, flashnorm and none.",
    ),
)


def flashnorm(dice: Dice, talk: Talk) -> list[Turn]:
    return discuss(dice, ITEMS[:2] + ITEMS)
