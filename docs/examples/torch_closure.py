"""A PyTorch model checked by npmeta.verification."""

import torch

import npmeta as nm

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).double()
x, y = torch.randn(10, 3).double(), torch.randn(10, 2).double()


def closure(params):
    tensors = {name: torch.tensor(p, requires_grad=True) for name, p in params.items()}
    loss = ((torch.func.functional_call(net, tensors, x) - y) ** 2).mean()
    loss.backward()
    return loss.item(), {name: tensor.grad for name, tensor in tensors.items()}


params = {name: p.detach().numpy() for name, p in net.named_parameters()}
report = nm.verification.check_gradient(closure, params)
print(report)
