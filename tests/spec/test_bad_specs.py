"""Bad specs, each with the exact text that a person gets."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from ipcnn_ray.errors import SpecError
from ipcnn_ray.spec.loader import loads

BASE = """\
name: t
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: uniform}
train: {epochs: 4}
"""
PLAIN = "{name: plain, set: {template.shape: none}}"


def spec(*lines: str) -> str:
    """BASE with these sections in place of its own, or below them: sections stay on lines 1 to 5, then 6, 7."""
    sections = {line.partition(":")[0]: line for line in (*BASE.splitlines(), *lines)}
    return "\n".join(sections.values()) + "\n"


def grid(fields: str, runs: str = PLAIN, more: str = "") -> str:
    return f"search: {{kind: grid, runs: [{runs}], grid: {{{fields}}}{more}}}"


def space(fields: str, more: str = "", trials: int = 3) -> str:
    return f"search: {{kind: space, trials: {trials}, runs: [{PLAIN}], space: {{{fields}}}{more}}}"


def case(name: str, text: str, *told: str) -> ParameterSet:
    """A spec and what is told of it: where and what, what to do, where and what, what to do, ..."""
    return pytest.param(text, told, id=name)


CASES = [
    case(
        "empty",
        "",
        "s.yaml:1  the file is empty",
        "`ipcnn schema` says what a spec has",
    ),
    case(
        "a_list",
        "- name: t\n",
        "s.yaml:1  the file is [{name: 't'}]",
        "a spec is a mapping: name, data, model, template, train, one `field: value` per line",
    ),
    case(
        "tab",
        "name: t\ntrain:\n\tepochs: 4\n",
        "s.yaml:3  a tab in the indentation",
        "YAML indents with spaces; replace the tab",
    ),
    case(
        "unclosed",
        "name: t\ndata: {kind: drawn_animals\nmodel: {network: compact}\n",
        "s.yaml:3  not YAML: expected ',' or '}', but got ':'",
        "while parsing a flow mapping that begins on line 2; mend it here or a line above",
    ),
    case(
        "key_twice",
        spec("train: {epochs: 4, epochs: 5}"),
        "s.yaml:5  train.epochs is there twice",
        "first on line 5; keep one",
    ),
    case(
        "key_is_a_number",
        spec("train: {epochs: 4, 7: 1}"),
        "s.yaml:5  train.7 as a key",
        "a key must be text; put quotes around it",
    ),
    case(
        "own_anchor",
        spec("loss: &l {filter: *l}"),
        "s.yaml:6  loss.filter",
        "an anchor cannot contain itself; write the value out",
    ),
    case(
        "two_documents",
        BASE + "---\nname: u\n",
        "s.yaml:6  a second document begins here",
        "one file is one experiment; make it two files",
    ),
    case(
        "missing_sections",
        "name: t\n",
        "s.yaml:1  data is missing",
        "needed: a section that says its kind, one of drawn_animals, voc_part, ilsvrc_animal_part, cub200",
        "s.yaml:1  model is missing",
        "needed: Which network, and which of its layers are interpretable",
        "s.yaml:1  template is missing",
        "needed: a section that says its shape, one of gradient, uniform, released, gaussian, ellipse, ring, mask, "
        "tailored, "
        "none",
        "s.yaml:1  train is missing",
        "needed: How the network is trained",
    ),
    case(
        "missing_kind",
        spec("data: {objects: 40}"),
        "s.yaml:2  data.kind is missing",
        "must be one of drawn_animals, voc_part, ilsvrc_animal_part, cub200",
    ),
    case(
        "wrong_kind",
        spec("data: {kind: voc_parts, category: cow}"),
        "s.yaml:2  data.kind = 'voc_parts'",
        "must be one of drawn_animals, voc_part, ilsvrc_animal_part, cub200. Did you mean 'voc_part'?",
    ),
    case(
        "section_is_text",
        spec("data: cow"),
        "s.yaml:2  data = 'cow'",
        "must be a section that says its kind, one of drawn_animals, voc_part, ilsvrc_animal_part, cub200",
    ),
    case(
        "missing_category",
        spec("data: {kind: voc_part}"),
        "s.yaml:2  data.category is missing",
        "needed: The animal of the positive images",
    ),
    case(
        "unknown_field",
        spec("train: {epochs: 4, learning_rat: 0.1}"),
        "s.yaml:5  train.learning_rat = 0.1",
        "train has no such field. Did you mean 'learning_rate'?",
    ),
    case(
        "unknown_section",
        spec("optimizer: {name: sgd}"),
        "s.yaml:6  optimizer = {name: 'sgd'}",
        "the spec has no such field; there is train.optimizer",
    ),
    case(
        "field_elsewhere",
        spec("epochs: 4"),
        "s.yaml:6  epochs = 4",
        "the spec has no such field; there is train.epochs",
    ),
    case(
        "field_of_other_kind",
        spec("template: {shape: gradient, gamma: 2}"),
        "s.yaml:4  template.gamma = 2",
        "template with shape: gradient has no such field; it belongs to shape: uniform",
    ),
    case(
        "no_template_no_beta",
        spec("template: {shape: none, beta: 2}"),
        "s.yaml:4  template.beta = 2",
        "template with shape: none has no such field; it belongs to shape: gradient or shape: uniform or "
        "shape: ellipse",
    ),
    case(
        "bad_name",
        spec("name: Uniform Sweep"),
        "s.yaml:1  name = 'Uniform Sweep'",
        "must be a name of a-z, 0-9 and _, at most 40 characters, not beginning with _",
    ),
    case(
        "zero_epochs",
        spec("train: {epochs: 0}"),
        "s.yaml:5  train.epochs = 0",
        "must be at least 1",
    ),
    case(
        "text_epochs",
        spec('train: {epochs: "4"}'),
        "s.yaml:5  train.epochs = '4'",
        "must be a whole number, and this is text: take the quotes away",
    ),
    case(
        "real_epochs",
        spec("train: {epochs: 4.5}"),
        "s.yaml:5  train.epochs = 4.5",
        "must be a whole number",
    ),
    case(
        "true_epochs",
        spec("train: {epochs: true}"),
        "s.yaml:5  train.epochs = true",
        "must be a whole number",
    ),
    case(
        "exponent_without_point",
        spec("train: {epochs: 4, learning_rate: 1e-4}"),
        "s.yaml:5  train.learning_rate = '1e-4'",
        "must be a number, and YAML reads this as text: write 1.0e-4",
    ),
    case(
        "momentum",
        spec("train: {epochs: 4, momentum: 1}"),
        "s.yaml:5  train.momentum = 1",
        "must be less than 1",
    ),
    case(
        "not_finite",
        spec("train: {epochs: 4, weight_decay: .inf}"),
        "s.yaml:5  train.weight_decay = inf",
        "must be a finite number",
    ),
    case(
        "misspelt_norm",
        spec("template: {shape: uniform, norm: L1}"),
        "s.yaml:4  template.norm = 'L1'",
        "must be one of l1, l2, linf, lp. Did you mean 'l1'?",
    ),
    case(
        "exponent_without_lp",
        spec("template: {shape: gradient, norm: l2, p: 3}"),
        "s.yaml:4  template.p = 3.0",
        "norm l2 has no exponent; drop this or take template.norm: lp",
    ),
    case(
        "lp_without_exponent",
        spec("template: {shape: uniform, norm: lp}"),
        "s.yaml:4  template.norm = 'lp'",
        "needs its exponent; add template.p, or take l1, l2 or linf",
    ),
    case(
        "exponent_of_other_shape",
        spec("template: {shape: ring, p: 3}"),
        "s.yaml:4  template.p = 3",
        "template with shape: ring has no such field; it belongs to shape: gradient or shape: uniform",
    ),
    case(
        "ellipse_out_of_range",
        spec("template: {shape: ellipse, aspect: 0.5, angle: 180}"),
        "s.yaml:4  template.aspect = 0.5",
        "must be at least 1",
        "s.yaml:4  template.angle = 180",
        "must be less than 180",
    ),
    case(
        "ring_beyond_the_map",
        spec("template: {shape: ring, radius: 0.7, width: 0}"),
        "s.yaml:4  template.radius = 0.7",
        "must be at most 0.5",
        "s.yaml:4  template.width = 0",
        "must be greater than 0",
    ),
    case(
        "bell_without_width",
        spec("template: {shape: gaussian, sigma: -0.1, beta: 2}"),
        "s.yaml:4  template.sigma = -0.1",
        "must be greater than 0",
        "s.yaml:4  template.beta = 2",
        "template with shape: gaussian has no such field; it belongs to shape: gradient or shape: uniform or "
        "shape: ellipse",
    ),
    case(
        "mask_that_is_no_square",
        spec("template: {shape: mask, values: [[0, -1], [0.0]]}"),
        "s.yaml:4  template.values = [[0.0, -1.0], [0.0]]",
        "must be square: its 2 rows have 2, 1 values",
        "s.yaml:4  template.values = [[0.0, -1.0], [0.0]]",
        "must be above 0 somewhere, or every map is erased",
    ),
    case(
        "mask_out_of_range",
        spec("template: {shape: mask, values: [[1, 2], [x, 0]]}"),
        "s.yaml:4  template.values.0.1 = 2",
        "must be at most 1",
        "s.yaml:4  template.values.1.0 = 'x'",
        "must be a number",
    ),
    case(
        "tailored_to_nothing",
        spec("template: {shape: tailored}"),
        "s.yaml:4  template.landmark is missing",
        "needed: The part, one of data.landmarks",
    ),
    case(
        "tailored_to_an_unknown_part",
        spec("template: {shape: tailored, landmark: tail}"),
        "s.yaml:4  template.landmark = 'tail'",
        "must be one of data.landmarks: head, neck, torso",
    ),
    case(
        "tailored_to_one_landmark",
        spec(
            "data: {kind: drawn_animals, landmarks: [head]}",
            "template: {shape: tailored, landmark: head, fitted_to: landmarks}",
        ),
        "s.yaml:4  template.fitted_to = 'landmarks'",
        "needs a second landmark; data.landmarks is only head",
    ),
    case(
        "tailored_to_masks_of_landmark_files",
        spec(
            "data: {kind: voc_part, category: cow}",
            "template: {shape: tailored, landmark: head, fitted_to: part_masks}",
        ),
        "s.yaml:4  template.fitted_to = 'part_masks'",
        "the landmark files hold no masks; take part_sizes, or data.annotation: part_masks",
    ),
    case(
        "tailored_slope",
        spec("template: {shape: tailored, landmark: head, beta: 2, scale: 0}"),
        "s.yaml:4  template.scale = 0",
        "must be greater than 0",
        "s.yaml:4  template.beta = 2",
        "template with shape: tailored has no such field; it belongs to shape: gradient or shape: uniform or "
        "shape: ellipse",
    ),
    case(
        "exponent_drawn_for_other_norms",
        spec("template: {shape: gradient}", space("template.norm: {choice: [l1, lp]}, template.p: {uniform: [1, 8]}")),
        "s.yaml:6  search.space.template.p.uniform.0 = 1.0",
        "norm l1 has no exponent; drop this or take template.norm: lp",
        "s.yaml:6  search.space.template.p.uniform.1 = 8.0",
        "norm l1 has no exponent; drop this or take template.norm: lp",
    ),
    case(
        "not_a_list",
        spec("model: {network: compact, interpretable_layers: conv4}"),
        "s.yaml:3  model.interpretable_layers = 'conv4'",
        "must be a list, such as [a, b]",
    ),
    case(
        "weights_path",
        spec("model: {network: alexnet, weights: {file: /data/alexnet.npz, layers: [conv1]}}"),
        "s.yaml:3  model.weights.file = '/data/alexnet.npz'",
        "must be the name of a .npz, .safetensors, .mat (MatConvNet) or .pth (state dict) file, without its folder; "
        "IPCNN_WEIGHTS names the folder",
    ),
    case(
        "flag_is_a_number",
        spec("model: {network: compact, appended_layer: 1}"),
        "s.yaml:3  model.appended_layer = 1",
        "must be true or false",
    ),
    case(
        "no_such_layer",
        spec("model: {network: vgg16, interpretable_layers: [conv5_3, conv5_4]}"),
        "s.yaml:3  model.interpretable_layers.1 = 'conv5_4'",
        "vgg16 has no such layer; it has conv1_1 ... conv5_3, conv6. Did you mean 'conv5_3'?",
    ),
    case(
        "appended_off",
        spec("model: {network: alexnet, appended_layer: false, interpretable_layers: [conv5, conv6]}"),
        "s.yaml:3  model.interpretable_layers.1 = 'conv6'",
        "conv6 is the appended layer, and model.appended_layer is false",
    ),
    case(
        "layer_order",
        spec("model: {network: compact, interpretable_layers: [conv5, conv4]}"),
        "s.yaml:3  model.interpretable_layers = ['conv5', 'conv4']",
        "must be listed lowest first: ['conv4', 'conv5']",
    ),
    case(
        "layer_twice",
        spec("model: {network: compact, interpretable_layers: [conv5, conv5]}"),
        "s.yaml:3  model.interpretable_layers.1 = 'conv5'",
        "is listed twice; list it once",
    ),
    case(
        "landmark_twice",
        spec("data: {kind: drawn_animals, landmarks: [head, neck, head]}"),
        "s.yaml:2  data.landmarks.2 = 'head'",
        "is listed twice; list it once",
    ),
    case(
        "freeze_no_weights",
        spec("train: {epochs: 4, freeze_through: conv2}"),
        "s.yaml:5  train.freeze_through = 'conv2'",
        "frozen layers need loaded weights; add model.weights or drop this",
    ),
    case(
        "freeze_random",
        spec(
            "model: {network: alexnet, weights: {file: a.npz, layers: [conv1, conv3]}}",
            "train: {epochs: 4, freeze_through: conv3}",
        ),
        "s.yaml:5  train.freeze_through = 'conv3'",
        "would freeze random weights in conv2; add them to model.weights.layers",
    ),
    case(
        "freeze_interpretable",
        spec(
            "model: {network: alexnet, weights: {file: a.npz, layers: [conv1, conv2, conv3, conv4, conv5]}}",
            "train: {epochs: 4, freeze_through: conv5}",
        ),
        "s.yaml:5  train.freeze_through = 'conv5'",
        "would keep the interpretable layer conv5 from learning; freeze through a lower layer",
    ),
    case(
        "backbone_without_cut",
        spec("model: {network: resnet18}"),
        "s.yaml:3  model.network = 'resnet18'",
        "is torchvision's and needs model.cut: the highest layer that is kept, such as features.12 or layer4.1",
    ),
    case(
        "cut_of_the_table",
        spec("model: {network: compact, cut: conv3, image_size: 32}"),
        "s.yaml:3  model.cut = 'conv3'",
        "compact is not torchvision's and is fixed; drop this",
        "s.yaml:3  model.image_size = 32",
        "compact is not torchvision's and is fixed; drop this",
    ),
    case(
        "freeze_a_random_backbone",
        spec("model: {network: resnet18, cut: layer1.0}", "train: {epochs: 4, freeze_through: conv1}"),
        "s.yaml:5  train.freeze_through = 'conv1'",
        "frozen layers need loaded weights; add model.weights or drop this",
    ),
    case(
        "freeze_unknown",
        spec("train: {epochs: 4, freeze_through: conv_2}"),
        "s.yaml:5  train.freeze_through = 'conv_2'",
        "compact has no such layer; it has conv1 ... conv4, conv5. Did you mean 'conv2'?",
    ),
    case(
        "eval_layer",
        spec("eval: {layer: conv3}"),
        "s.yaml:6  eval.layer = 'conv3'",
        "must be one of model.interpretable_layers, conv4, conv5. Did you mean 'conv5'?",
    ),
    case(
        "released_form_with_the_papers_schedule",
        spec("loss: {filter: {form: released, schedule: paper}}"),
        "s.yaml:6  loss.filter.schedule = 'paper'",
        "is the paper's; the released form takes epoch (weight / epoch, its own) or constant",
    ),
    case(
        "released_form_with_tau",
        spec("template: {shape: uniform, tau: 0.1}", "loss: {filter: {form: released}}"),
        "s.yaml:4  template.tau = 0.1",
        "the released form has no height of a template, only loss.filter.weight; drop this",
    ),
    case(
        "beta_of_a_uniform_template",
        spec("loss: {filter: {learn_beta: true}}"),
        "s.yaml:6  loss.filter.learn_beta = true",
        "the exact form learns no slope of template.shape uniform; drop this",
    ),
    case(
        "beta_without_a_gradient",
        spec("template: {shape: gradient}", "loss: {filter: {form: zconst, learn_beta: true}}"),
        "s.yaml:6  loss.filter.learn_beta = true",
        "the zconst form has no gradient for it; take exact or released, or drop this",
    ),
    case(
        "rate_of_betas_that_do_not_learn",
        spec("loss: {filter: {beta_rate: 1}}"),
        "s.yaml:6  loss.filter.beta_rate = 1.0",
        "is for learned betas; add loss.filter.learn_beta: true, or drop this",
    ),
    case(
        "pooled_mask_without_the_layer",
        spec("model: {network: compact, appended_layer: false, appended_mask: pooled}"),
        "s.yaml:3  model.appended_mask = 'pooled'",
        "is of the appended layer, and model.appended_layer is false; drop one of the two",
    ),
    case(
        "warm_up_without_end",
        spec("train: {epochs: 4, warmup_epochs: 4}"),
        "s.yaml:5  train.warmup_epochs = 4",
        "must be less than train.epochs = 4",
    ),
    case(
        "decay_within_the_warm_up",
        spec("train: {epochs: 9, warmup_epochs: 2, decay_epochs: 3}"),
        "s.yaml:5  train.decay_epochs = 3",
        "must be from 4 (train.warmup_epochs + 2) to train.epochs = 9",
    ),
    case(
        "momentum_of_adamw",
        spec("train: {epochs: 4, optimizer: adamw, momentum: 0.5}"),
        "s.yaml:5  train.momentum = 0.5",
        "is SGD's; AdamW has none that can be set. Drop this",
    ),
    case(
        "rates_of_loaded_biases_without_weights",
        spec("train: {epochs: 4, last_bias_rate: 5, decay_loaded_biases: true}"),
        "s.yaml:5  train.last_bias_rate = 5.0",
        "is for layers that were loaded; add model.weights, or drop this",
        "s.yaml:5  train.decay_loaded_biases = true",
        "is for layers that were loaded; add model.weights, or drop this",
    ),
    case(
        "unknown_recipe",
        spec("recipe: relased"),
        "s.yaml:6  recipe = 'relased'",
        "must be one of released, modern. Did you mean 'released'?",
    ),
    case(
        "loss_without_template",
        spec("template: {shape: none}", "loss: {filter: {weight: 0.1}}"),
        "s.yaml:6  loss.filter = {weight: 0.1}",
        "a network without a template has no filter loss; drop this or choose a template.shape",
    ),
    case(
        "uneven",
        spec("compute: {workers: 3}"),
        "s.yaml:5  train.batch_size = 64",
        "must be a multiple of compute.workers = 3, such as 63",
    ),
    case(
        "one_image",
        spec("train: {epochs: 4, batch_size: 1}"),
        "s.yaml:5  train.batch_size = 1",
        "the filter loss compares images and is always 0 for one; take at least 2",
    ),
    case(
        "batch_of_more",
        spec("data: {kind: drawn_animals, objects: 10, negatives: 10}"),
        "s.yaml:5  train.batch_size = 64",
        "is more than the 24 training items: no batch would ever be full",
    ),
    case(
        "no_validation",
        spec("data: {kind: drawn_animals, train_share: 0.9999}"),
        "s.yaml:2  data.train_share = 0.9999",
        "leaves one split without any of the 400 objects; take it closer to 0.5",
    ),
    case(
        "gpu_parts",
        spec("compute: {workers: 2, gpus_per_worker: 0.5}"),
        "s.yaml:6  compute.gpus_per_worker = 0.5",
        "2 workers cannot share a GPU (NCCL); give each a whole one, or take one worker",
    ),
    case(
        "one_and_a_half_gpus",
        spec("compute: {gpus_per_worker: 1.5}"),
        "s.yaml:6  compute.gpus_per_worker = 1.5",
        "must be whole above 1: Ray shares out parts of one GPU only",
    ),
    case(
        "concurrent_alone",
        spec("compute: {concurrent_runs: 2}"),
        "s.yaml:6  compute.concurrent_runs = 2",
        "there is only one run without a search; drop this",
    ),
    case(
        "no_control",
        spec(grid("template.beta: [1, 2]", more=", objective: {control: plane}")),
        "s.yaml:6  search.objective.control = 'plane'",
        "must be one of search.runs: plain. Did you mean 'plain'?",
    ),
    case(
        "runs_of_one_name",
        spec(grid("template.beta: [1, 2]", runs=PLAIN + ", " + PLAIN)),
        "s.yaml:6  search.runs.1.name = 'plain'",
        "another run has this name",
    ),
    case(
        "same_runs",
        spec(grid("template.beta: [1, 4]", runs=PLAIN + ", {name: a, set: {}}, {name: b, set: {template.beta: 2}}")),
        "s.yaml:6  search.runs.2.name = 'b'",
        "trains the same as a; drop one",
    ),
    case(
        "no_such_path",
        spec(grid("template.betta: [1, 2]")),
        "s.yaml:6  search.grid.template.betta = [1, 2]",
        "a spec has no field template.betta. Did you mean 'template.beta'?",
    ),
    case(
        "path_of_compute",
        spec(grid("compute.workers: [1, 2]")),
        "s.yaml:6  search.grid.compute.workers = [1, 2]",
        "compute is the same for all runs of an experiment; drop this",
    ),
    case(
        "path_of_section",
        spec(grid("template: [gradient]")),
        "s.yaml:6  search.grid.template = ['gradient']",
        "template is a section; name one of its fields, or give it to one of search.runs",
    ),
    case(
        "path_through",
        spec(grid("seed.x: [1]")),
        "s.yaml:6  search.grid.seed.x = [1]",
        "a spec has no field seed.x. Did you mean 'seed'?",
    ),
    case(
        "grid_twice",
        spec(grid("template.beta: [2, 2.0]")),
        "s.yaml:6  search.grid.template.beta.1 = 2.0",
        "is listed twice; list it once",
    ),
    case(
        "grid_invalid_value",
        spec(grid("template.beta: [1, -1]")),
        "s.yaml:6  search.grid.template.beta.1 = -1",
        "must be greater than 0",
    ),
    case(
        "grid_invalid_combination",
        spec(grid("template.shape: [uniform, gradient], template.gamma: [1, 2]")),
        "s.yaml:6  search.grid.template.gamma.0 = 1",
        "template with shape: gradient has no such field; it belongs to shape: uniform",
        "s.yaml:6  search.grid.template.gamma.1 = 2",
        "template with shape: gradient has no such field; it belongs to shape: uniform",
    ),
    case(
        "set_inside",
        spec(
            grid(
                "template.beta: [1, 2]",
                runs=PLAIN + ", {name: a, set: {template: {shape: gradient}, template.beta: 1}}",
            )
        ),
        "s.yaml:6  search.runs.1.set.template.beta = 1",
        "is inside template, which this run sets too; say it in one of the two",
    ),
    case(
        "set_wrong",
        spec(grid("template.beta: [1, 2]", runs=PLAIN + ", {name: a, set: {template: {shape: gradient, gamma: 1}}}")),
        "s.yaml:6  search.runs.1.set.template.gamma = 1",
        "template with shape: gradient has no such field; it belongs to shape: uniform",
    ),
    case(
        "set_wrong2",
        spec(grid("template.beta: [1, 2]", runs=PLAIN + ", {name: a, set: {train.freeze_through: conv1}}")),
        "s.yaml:6  search.runs.1.set.train.freeze_through = 'conv1'",
        "frozen layers need loaded weights; add model.weights or drop this",
    ),
    case(
        "space_list",
        spec(space("template.norm: [l1, l2]")),
        "s.yaml:6  search.space.template.norm = ['l1', 'l2']",
        "must be a section with one of choice, uniform, log_uniform",
    ),
    case(
        "ends",
        spec(space("template.beta: {log_uniform: [4, 1]}")),
        "s.yaml:6  search.space.template.beta.log_uniform = [4.0, 1.0]",
        "must go from its lower to its upper end: [lower, upper]",
    ),
    case(
        "one_end",
        spec(space("template.beta: {uniform: [4]}")),
        "s.yaml:6  search.space.template.beta.uniform has only 1 value(s)",
        "must be a list of 2 values",
    ),
    case(
        "log_zero",
        spec(space("template.beta: {log_uniform: [0, 1]}")),
        "s.yaml:6  search.space.template.beta.log_uniform.0 = 0",
        "must be greater than 0",
    ),
    case(
        "exponent_in_a_space",
        spec(space("train.learning_rate: {log_uniform: [1e-4, 0.1]}")),
        "s.yaml:6  search.space.train.learning_rate.log_uniform.0 = '1e-4'",
        "must be a number, and YAML reads this as text: write 1.0e-4",
    ),
    case(
        "range_over_whole_numbers",
        spec(space("train.batch_size: {uniform: [16, 64]}")),
        "s.yaml:6  search.space.train.batch_size.uniform = [16.0, 64.0]",
        "train.batch_size is a whole number and a range draws any; list a choice",
    ),
    case(
        "when_nothing",
        spec(space("template.gamma: {uniform: [1, 2], when: {template.norms: l1}}, template.norm: {choice: [l1, l2]}")),
        "s.yaml:6  search.space.template.gamma.when.template.norms = 'l1'",
        "must be another field of the space. Did you mean 'template.norm'?",
    ),
    case(
        "when_never",
        spec(space("template.gamma: {uniform: [1, 2], when: {template.norm: l3}}, template.norm: {choice: [l1, l2]}")),
        "s.yaml:6  search.space.template.gamma.when.template.norm = 'l3'",
        "template.norm never takes this value; it takes l1, l2",
    ),
    case(
        "when_range",
        spec(space("template.gamma: {uniform: [1, 2], when: {template.beta: 1}}, template.beta: {uniform: [1, 2]}")),
        "s.yaml:6  search.space.template.gamma.when.template.beta = 1",
        "template.beta takes any number of a range; only the values of a choice can be waited for",
    ),
    case(
        "needs_when",
        spec(space("template.shape: {choice: [uniform, gradient]}, template.gamma: {uniform: [1, 2]}")),
        "s.yaml:6  search.space.template.gamma is drawn for template.shape = 'gradient' too, which has no gamma",
        "add when: {template.shape: uniform}",
    ),
    case(
        "when_circle",
        spec(
            space(
                "template.norm: {choice: [l1, l2], when: {eval.images: all}}, "
                "eval.images: {choice: [all], when: {template.norm: l1}}"
            )
        ),
        "s.yaml:6  search.space.template.norm.when = {eval.images: 'all'}",
        "waits for a field that waits for this one",
        "s.yaml:6  search.space.eval.images.when = {template.norm: 'l1'}",
        "waits for a field that waits for this one",
    ),
    case(
        "grace",
        spec(space("template.beta: {uniform: [1, 2]}", ", early_stopping: {grace_epochs: 4}")),
        "s.yaml:6  search.early_stopping.grace_epochs = 4",
        "must be less than train.epochs = 4, or no run is ever stopped early",
    ),
    case(
        "every",
        spec(space("template.beta: {uniform: [1, 2]}", ", early_stopping: {}"), "eval: {every: 2}"),
        "s.yaml:7  eval.every = 2",
        "early stopping judges a run after every epoch; take 1, or drop search.early_stopping",
    ),
    case(
        "trials",
        spec(space("template.beta: {uniform: [1, 2]}", trials=0)),
        "s.yaml:6  search.trials = 0",
        "must be at least 1",
    ),
    case(
        "grid_trials",
        spec(grid("template.beta: [1, 2]", more=", trials: 3")),
        "s.yaml:6  search.trials = 3",
        "search with kind: grid has no such field; it belongs to kind: space",
    ),
    case(
        "workers_in_corner",
        spec(space("train.batch_size: {choice: [64, 30]}"), "compute: {workers: 4}"),
        "s.yaml:6  search.space.train.batch_size.choice.1 = 30",
        "must be a multiple of compute.workers = 4, such as 32",
    ),
    case(
        "no_runs",
        spec("search: {kind: grid, grid: {template.beta: [1]}}"),
        "s.yaml:6  search.runs is missing",
        "needed: Named runs, trained first and in full; the control is one of them",
    ),
    case(
        "nested_value",
        spec(grid("template.beta: [1, [2]]")),
        "s.yaml:6  search.grid.template.beta.1 = [2]",
        "must be one value: a number, text, or true or false",
    ),
    case(
        "several",
        """\
name: t
data: {kind: voc_part, category: camel}
model:
  network: alexnet
  interpretable_layers: [conv6, conv7]
  colour: red
template: {shape: none, gamma: 1}
loss: {filter: {weight: 0}}
train:
  epochs: 0
  freeze_through: conv9
  batch_size: 30
compute: {workers: 4}
""",
        "s.yaml:2  data.category = 'camel'",
        "must be one of bird, cat, cow, dog, horse, sheep",
        "s.yaml:5  model.interpretable_layers.1 = 'conv7'",
        "alexnet has no such layer; it has conv1 ... conv5, conv6. Did you mean 'conv6'?",
        "s.yaml:6  model.colour = 'red'",
        "model has no such field; it has network, cut, image_size, appended_layer, interpretable_layers, "
        "appended_mask, dropout, weights",
        "s.yaml:7  template.gamma = 1",
        "template with shape: none has no such field; it belongs to shape: uniform",
        "s.yaml:8  loss.filter.weight = 0",
        "must be greater than 0",
        "s.yaml:10  train.epochs = 0",
        "must be at least 1",
        "s.yaml:11  train.freeze_through = 'conv9'",
        "alexnet has no such layer; it has conv1 ... conv5, conv6. Did you mean 'conv6'?",
        "s.yaml:12  train.batch_size = 30",
        "must be a multiple of compute.workers = 4, such as 32",
    ),
]


@pytest.mark.parametrize(("text", "told"), CASES)
def test_what_a_person_reads(text: str, told: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        loads(text, "s.yaml")
    expected = [f"{fact}\n       {way}" for fact, way in zip(told[::2], told[1::2], strict=True)]
    assert str(caught.value) == "\n".join(expected)


def test_there_are_forty():
    assert len(CASES) >= 40
    assert len({case.id for case in CASES}) == len(CASES)


def test_the_base_of_these_is_sound():
    assert loads(BASE, "s.yaml").spec.name == "t"
    assert loads(spec(grid("template.beta: [1, 2]")), "s.yaml").spec.search
    assert loads(spec(space("template.beta: {uniform: [1, 2]}")), "s.yaml").spec.search
