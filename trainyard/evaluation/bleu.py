"""The scorers of sacrebleu, which brings redis and what that imports: loaded by what scores."""

import sacrebleu

BLEU = sacrebleu.BLEU()
SENTENCE_BLEU = sacrebleu.BLEU(effective_order=True)
CHRF = sacrebleu.CHRF()
