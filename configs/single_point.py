"""The papers' net of 3 convolutions, 3 pools and a dense layer in units; it, and a ResNet-20, between edge and cloud.

Source: the papers claim convolutions 50 % faster, pools 30 %, dense layers 40 %, memory 30 % less, time 20 % less.
Command: python -m experiments.single_point --seeds 3
Time: 92 minutes on 2 CPU cores that other programs shared, row by row (`--resume`),
the latencies alone on the machine; every A/A of layers and units within 5 %.
Result, revision 40885d8, mean of 3 seeds. ONNX Runtime: convolutions +146 %, pools +181 %, dense +6 %; the net takes 60 % less
time whole, 57 % in 3 units. XLA: convolutions -1 %, pools +13 % (their derivatives +214 %), dense -9 %; the net takes 15 %
less time whole, 9 % less in 3 units, and 22 to 26 % more memory. On two devices, by the clock: four towers 1.40 times as
fast (A/A 1.12, so hardly a gain), perceptrons 1.02, a pipeline of 2 units 0.98.
Edge, revision 8282513, ResNet-20 on 1,000 CIFAR images: cut behind 88 % of the work, 16,384 raw bytes become 333 at 2 bits and
620 at 3 with the frame, 0.94 and 0.97 of the entropy, 91.27 and 91.87 % right (uncut 91.50), the same digits again at
8585d48. Fashion-MNIST, 10,000 images, revision 8585d48: behind 53 % of the work 405 of 6,272 bytes at 3 bits
(15.5x, 0.97 of the entropy, 88.00 %, uncut 88.15), behind all but the last layer 183 of 4,096 at 2 bits (22x, 1.01, 87.87).
Latency over a throttled link, Fashion-MNIST, revision 9c971da: 55 of 60 predictions within 20 % of what was measured (missed;
the largest is 29 % off), the chosen way the fastest in 12 of 12. Not run to its end: the latency of ResNet-20.
"""

from experiments.common.config import Tfds
from experiments.studies.single_point import SinglePoint


def get_config() -> SinglePoint:
    return SinglePoint(name="single_point", data=Tfds(name="fashion_mnist"), epochs=1, scan=False)
