"""One training on Ray Train.

follow.py    what workers tell the driver: journal, events, failures; on its disk or through a mailbox
launch.py    the driver: checks disk and resources, launches Ray Train on the node's network
network.py   the interface of gloo and NCCL
stopping.py  three ways to stop: the budget, a worker without progress, SIGTERM
usage.py     CPU, memory, GPU and energy of each process
worker.py    the work of each worker: build the job, train, write the model
"""
