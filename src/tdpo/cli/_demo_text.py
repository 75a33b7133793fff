"""The text of `tdpo demo`."""

INTRODUCTION = """\
This demo teaches a small language model to answer more cheerfully, three times: with TDPO2 and with DPO from the same
examples, and with PPO from a reward alone. The model is SmolLM2 with 135 million parameters; everything runs on this
machine.

The question is not only which method gets the higher reward, but what each pays for it: how far the trained model
moves away from the one it started as, and whether it still says many different things. Two distances tell that apart.

  KL(reference‖policy), the forward KL: how badly the trained model (policy) covers what the model before training
  (reference) would say. It grows when something that used to be likely becomes unlikely. TDPO has it in its loss,
  summed over the whole vocabulary at every token.

  KL(policy‖reference), the reverse KL: how much the trained model says that the reference would not. It grows when
  responses appear that used to be unlikely. PPO penalises this one.

Both are measured in nats a response: 0 is the same model, and each nat more is a factor of e in probability."""

DTYPE = {
    "bfloat16": """
The demo runs in bfloat16, which was just measured to be clearly faster on this machine: {measured}.""",
    "float32": """
The demo runs in float32: bfloat16 was just measured to be no faster on this machine ({measured}).
In another dtype the same seeds sample other responses: other pairs, other numbers.""",
}

SHORT_SIZE = (
    "This is the short demo: {train} prompts to train on, scored responses {scored}, and {held_out} held-out prompts "
    "with {responses} responses of each model. That is little, so intervals are wide, and an order of the methods can "
    "be chance. make demo-full (tdpo demo --full) is the long one."
)
FULL_SIZE = (
    "This is the full demo: {train} prompts to train on, scored responses {scored}, and {held_out} held-out prompts "
    "with {responses} responses of each model. One seed and one strength of each method do not make a ranking."
)
QUICK_SIZE = (
    "This is demo --quick: {train} prompts to train on, scored responses {scored}, a few updates, and {held_out} "
    "held-out prompts, all with eight tokens a response. It shows that everything runs; its numbers mean nothing."
)

PAIRS = """\
The model answers each training prompt several times. A sentiment score (VADER, from -1 to +1) ranks
the responses; the best is paired with the worst. These pairs, the model's own words, are all that TDPO2 and DPO see."""

HELD_OUT_PAIRS = """\
The same for prompts that are never trained on: does the model learn to rank, or to remember?"""

TRAINING = {
    "TDPO2": """\
Each update raises the chosen responses against the rejected ones, measured against the reference. TDPO2
also compares the forward KLs of the two responses, so that the rejected side does not run away. Only a small adapter
is trained. Watch accuracy rise above 0.5 and the chosen KL stay small.""",
    "DPO": """\
The same pairs, the same number of updates, without the KL in the loss. Watch how the chosen KL grows.""",
    "PPO": """\
No pairs: the model answers training prompts, the score of each response is its reward, and updates make the better
responses likelier; then it answers anew. A critic that is trained alongside predicts the reward, and clipping keeps
one round of responses from moving the model far. The reverse KL is a penalty: each nat by which a response leaves the
reference is taken off its reward, times a coefficient that rises while the KL is above its target and falls below it.
PPO scores {PPO} responses, each from the model as it is by then; TDPO2 and DPO share
the ranks of {TDPO2} responses of the untrained model. Watch the reward rise, and the KL settle at its target.""",
}

EVALUATION = """\
Base and trained model answer the held-out prompts with the same random numbers. Rewards say whether training
worked; both KLs and the share of distinct word pairs (distinct-2) say at what price. The base model answers once, for
all three to be compared with."""

READING = """
How to read it: a higher mean reward is what training was for. A smaller KL at the same reward is a better bargain.
A falling variance or distinct-2 means the responses become more alike. Three points do not make a ranking: the strength
(beta, for PPO the KL's target) moves each method along a curve of its own, a budget of pairs is not one of PPO's own
responses, and one short run has noise. The intervals show that of the held-out prompts; another seed of training would
add its own."""

NEXT = """\
Next: tdpo generate {folder}/tdpo2 --prompt "How was your day?" --base
      tdpo recipe --example preferences > recipe.yaml   (your own data)"""
