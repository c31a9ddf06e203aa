"""DeepSpeed.

deepspeed_engine.py  `DeepSpeedEngine`, and our settings in DeepSpeed's terms
fragments.py         a rank's share of the training state as named fragments
muon.py              Muon over sharded matrices
replicas.py          silent corruption found before the next step
skip_step.py         a step that is applied or changes nothing, on all ranks alike
"""
