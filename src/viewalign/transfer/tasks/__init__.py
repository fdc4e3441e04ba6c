"""Tasks with one answer a case: classification and regression, from a manifest to predictions with intervals.

```
spec.py, manifest.py, converters/   what the task is: a YAML file and a table of cases
preparation.py                      files → the one tensor that training, embedding, prediction and export see
network.py, pooling.py, encoders.py a backbone, a pooling, a head; losses on standardised targets
folds.py, training.py, finetune.py  folds by subject, one fold's loop, a whole cross-validation
metrics.py, comparing.py            judged once over all cases, with intervals over subjects
caching.py, augmenting.py, lora.py    prepared cases on disk, changes of training, low-rank adapters
models.py, onnx_export.py           a trained task on new cases, here and elsewhere
```
"""
