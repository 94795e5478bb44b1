# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Audio to log-mel frames."""

import math
from functools import lru_cache
from numbers import Number

import numpy as np
import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging


logger = logging.get_logger(__name__)


@lru_cache(maxsize=8)
def _mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """Mel bands `(n_fft // 2 + 1, num_mel_bins)`, as Whisper's."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


def _padded_length(length: int, padding, max_length: int | None, pad_to_multiple_of: int | None) -> int:
    """The length that a batch whose longest clip has `length` frames is padded to."""
    if not padding:
        raise ValueError(f"`padding={padding!r}`; clips become one tensor: expected True, 'longest' or 'max_length'")
    if padding == "max_length":
        if max_length is None:
            raise ValueError("`padding='max_length'` needs `max_length`")
        length = max(length, max_length)
    multiple = pad_to_multiple_of or 1
    return math.ceil(length / multiple) * multiple


class CrossFuseFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Audio to log-mel frames, scaled as Whisper's (Radford et al., 2022) but of any length.

    Each clip's frames are computed before it is padded, so that a clip gives the same features alone and in any batch.

    Args:
        feature_size (`int`, defaults to 80): mel bands per frame.
        sampling_rate (`int`, defaults to 16000): samples per second, in hertz.
        n_fft (`int`, defaults to 400): samples per frame (25 ms).
        hop_length (`int`, defaults to 160): samples from one frame to the next (10 ms).
        padding_value (`float`, defaults to 0.0): the value of the padding.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_crossfuse import CrossFuseFeatureExtractor

    >>> extractor = CrossFuseFeatureExtractor()
    >>> batch = extractor([np.zeros(16_000), np.zeros(8_000)], sampling_rate=16_000, return_tensors="pt")
    >>> batch["input_features"].shape
    torch.Size([2, 80, 101])
    >>> batch["attention_mask"].sum(-1)
    tensor([101,  51])
    ```
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        n_fft: int = 400,
        hop_length: int = 160,
        padding_value: float = 0.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft = n_fft
        self.hop_length = hop_length

    def _log_mel(self, clip: torch.Tensor) -> torch.Tensor:
        """Log-mel frames `(feature_size, 1 + samples // hop_length)` of one clip `(samples,)`."""
        window = torch.hann_window(self.n_fft)
        # The clip is padded with silence; to be reflected, it would have to be longer than half a frame.
        spectrum = torch.stft(
            clip, self.n_fft, self.hop_length, window=window, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel = (_mel_filters(self.feature_size, self.n_fft, self.sampling_rate).T @ power).clamp(min=1e-10).log10()
        return (log_mel.clamp(min=log_mel.max() - 8.0) + 4.0) / 4.0

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | list,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech (`np.ndarray` or `torch.Tensor` of shape `(samples,)`, or a list of these): one or more clips.
            sampling_rate (`int`, *optional*): of the clips, in hertz; checked against the extractor's.
            padding (`bool` or `str`, defaults to `True`): to the longest of the batch, or to `"max_length"`.
            max_length (`int`, *optional*): frames to keep of a clip.
            truncation (`bool`, *optional*): whether longer clips are cut; `True` where `max_length` is given.
            pad_to_multiple_of (`int`, *optional*): pads the number of frames to a multiple.
            return_attention_mask (`bool`, *optional*): whether to return the mask; the extractor's setting by default.
            return_tensors (`str`, *optional*): `"pt"`, or NumPy arrays otherwise.

        Returns:
            [`BatchFeature`]: `input_features` `(batch, feature_size, frames)` and `attention_mask` `(batch, frames)`,
            which models take as `feature_attention_mask`.

        Raises:
            ValueError: if a clip is empty, has more than one channel or another sampling rate.
        """
        if sampling_rate is None:
            logger.warning_once(f"No `sampling_rate` is given: the audio is taken to have {self.sampling_rate} Hz.")
        elif sampling_rate != self.sampling_rate:
            raise ValueError(f"`sampling_rate={sampling_rate}`; this extractor expects {self.sampling_rate} Hz")
        is_batch = isinstance(raw_speech, (list, tuple)) and not all(isinstance(value, Number) for value in raw_speech)
        clips = [torch.tensor(np.asarray(clip, np.float32)) for clip in (raw_speech if is_batch else [raw_speech])]
        for index, clip in enumerate(clips):
            if clip.dim() != 1 or len(clip) == 0:
                raise ValueError(f"clip {index} has shape {tuple(clip.shape)}; expected `(samples,)`, not empty")
        with torch.no_grad():
            frames = [self._log_mel(clip) for clip in clips]
        if max_length is not None and truncation is not False:
            frames = [clip[:, :max_length] for clip in frames]
        lengths = torch.tensor([clip.shape[1] for clip in frames])
        length = _padded_length(int(lengths.max()), padding, max_length, pad_to_multiple_of)
        padded = [nn.functional.pad(clip, (0, length - clip.shape[1]), value=self.padding_value) for clip in frames]
        tensors = {"input_features": torch.stack(padded)}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            tensors["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
        return BatchFeature(tensors if return_tensors == "pt" else {key: x.numpy() for key, x in tensors.items()})


__all__ = ["CrossFuseFeatureExtractor"]
