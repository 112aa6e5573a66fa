"""Losses that several methods share: plain functions of tensors, equal over several processes to those over one."""
