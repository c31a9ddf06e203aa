"""One training on Ray Train.

failures.py  failures of workers and warnings of libraries as training events; their causes
follow.py    the journal and the events, followed by the driver and described in words
launch.py    the driver: checks disk and resources, launches Ray Train
network.py   the interface of gloo and NCCL
relay.py     journal, events and the wish to stop, between a driver and workers that share no disk
stopping.py  three ways to stop: the budget, a worker without progress, SIGTERM
usage.py     CPU, memory, GPU and energy of each process
worker.py    the work of each worker: build the job, train, write the model
"""
