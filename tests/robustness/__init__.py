"""Damaged folders, and what becomes of them: nothing may fail with a foreign exception, hang, or lie in silence.

`damage*` make variants of whole folders (`data_folders`, `run_folders`, `pi_folders`) from a seed; `*_probes` run
what the commands run on each, in processes of their own (`workers`), and judge it (`outcomes`, `plain`,
`well_formed`); `campaign` counts.
`make test-robustness` tries thousands, `test_robustness` a few.
"""
