"""The networks of the comparison."""

import torch
from torch import Tensor, nn


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )


def convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """relu(x' + BN(conv(relu(BN(conv(x)))))), where x' is x, or a 1x1 convolution of it when the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = convolution(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class SlimResNet18(nn.Module):
    """ResNet-18 for 32x32 images with nf channels in the first stage (Lopez-Paz and Ranzato, NeurIPS 2017)."""

    def __init__(self, nf: int = 20, outputs: int = 10):
        super().__init__()
        self.stem, self.norm = convolution(3, nf, 3, 1), nn.BatchNorm2d(nf)
        blocks, width = [], nf
        for stage in range(4):
            following = nf << stage
            blocks += [BasicBlock(width, following, 1 if stage == 0 else 2), BasicBlock(following, following, 1)]
            width = following
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(h.mean((2, 3)))
