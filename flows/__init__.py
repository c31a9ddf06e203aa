"""In what order and when: Prefect flows and the `gpt2` command.

cli.py         the `gpt2` command: registers the commands
commands/      the commands, by subject
config.py      `PipelineConfig`: presets, files and changes to settings; settings as form fields
jobs/          the deployments: a flow, and the plan of it, each
pipeline.py    the whole story: tokenize, pretrain, finetune, evaluate, register
plan.py        every artifact's key before any run; the artifacts that are done
prefect.yaml   the deployments and their schedules
presets/       settings of whole pipelines, as YAML
runs/          how a flow run behaves
server.py      Prefect's server, its worker and what is deployed there
stage_code.py  the modules that each stage's result depends on
stages/        the pipeline's stages
"""
