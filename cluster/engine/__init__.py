"""DeepSpeed.

deepspeed_engine.py  `DeepSpeedEngine`, and our settings in DeepSpeed's terms
fragments.py         a rank's share of the training state as named fragments
guard.py             a bad step changes nothing, on all ranks alike; silent corruption is found before the next step
muon.py              Muon over sharded matrices
"""
